# SPDX-License-Identifier: Apache-2.0
"""Post-training of the LiDAR tokenizer, at any size."""
