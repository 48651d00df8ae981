# SPDX-License-Identifier: Apache-2.0
"""Training of the students: synthetic stream, objective, evaluation."""
