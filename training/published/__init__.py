# SPDX-License-Identifier: Apache-2.0
"""Post-training of the published denoiser (Cosmos-Transfer-LidarGen), at any size."""
