# SPDX-License-Identifier: Apache-2.0
"""Data sets: clips read and written, bags and public data sets converted, data sets checked."""
