# SPDX-License-Identifier: Apache-2.0
"""Write a small set of DiT vectors in the format that ``test/parity`` reads, computed by this code in float64.

    python tools/make_dit_vectors.py DIR [--seed 7] [--full SET]

Such a set proves nothing about the published model. It keeps what was equal to the published numbers when it
was written, in a tenth of their size, and shows that the tests read all sizes from the set. ``--full`` copies
the files that do not depend on sizes from a set of published numbers.
"""

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file

from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_denoiser import Condition, Corruption, DiffusionModel, FixedCorruption, guided
from lidargen_ros.models.dit_latents import condition_indicator, encode_views, join
from lidargen_ros.models.dit_positions import additive_embedding, rotary_angles, rotary_frequencies
from lidargen_ros.sampling import adams_bashforth_2, karras_sigmas
from training.published_loss import published_loss

CONFIG = DiTConfig(width=24, heads=2, blocks=2, adaln_width=4, text_width=8)
LIDAR, CAMERA, TEXT_TOKENS, GUIDANCE = (2, 4), (4, 2), 3, 1.5
PUBLISHED = (
    "keys_7b.json",
    "ema_lr.json",
    "pos_emb_7b.safetensors",
    "schedule.safetensors",
    "sampler_analytic.safetensors",
)


class Maker:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = DiffusionModel(CONFIG)
        self.model.net.init_weights(self.generator)
        for parameter in self.model.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.1, generator=self.generator)
        self.model = self.model.double()
        self.text = self.normal(1, CONFIG.views * TEXT_TOKENS, CONFIG.text_width)
        self.views = [self.normal(1, 16, 1, *CAMERA) for _ in range(CONFIG.views - 1)]
        self.lidar = self.normal(1, 16, 1, *LIDAR)
        self.clean = join(self.lidar, encode_views(lambda x: x, self.views))

    def normal(self, *shape):
        """Normal draws that float32 holds exactly."""
        return torch.randn(shape, generator=self.generator).double()

    def corruption(self, sigma):
        return Corruption(torch.tensor([sigma]).double(), self.normal(*self.clean.shape))

    def config(self):
        height, width = self.clean.shape[-2:]
        names = sorted(n for n, _ in self.model.named_parameters())
        return {
            "set": "computed by lidargen_ros, not by the published code",
            "analytic_denoiser": {"mu": 0.3, "s": 0.7, "sigma_min": 0.02, "sigma_max": 80.0},
            "training_grad_norm_order": names,
            "network": {
                "model_channels": CONFIG.width,
                "num_heads": CONFIG.heads,
                "num_blocks": CONFIG.blocks,
                "adaln_lora_dim": CONFIG.adaln_width,
                "crossattn_emb_channels": CONFIG.text_width,
                "in_channels": CONFIG.latent_channels,
                "patch_spatial": CONFIG.patch,
                "n_views": CONFIG.views,
                "n_views_emb": CONFIG.view_rows,
                "mlp_ratio": float(CONFIG.mlp_ratio),
                "max_frames": CONFIG.max_positions,
            },
            "latents": {
                "lidar": LIDAR,
                "rgb": CAMERA,
                "padded": (height, width),
                "text_tokens_per_view": TEXT_TOKENS,
            },
        }

    def net_forward(self):
        net, (height, width) = self.model.net, self.clean.shape[-2:]
        x = self.normal(2, *self.clean.shape[1:])
        mask = (self.normal(2, 1, *self.clean.shape[2:]) > 0).double()
        padding = (self.normal(2, 1, 7, 9) > 0).double()
        views = torch.tensor([[0, 1, 2, 3], [2, 0, 7, 1]])
        text, times = self.normal(2, *self.text.shape[1:]), self.normal(2)
        block0, seen = net.blocks["block0"], {}
        modules = {
            "x_embedder_out": net.x_embedder,
            "timestep_sincos": net.t_embedder[0],
            "adaln_lora_B_3D": net.t_embedder[1],
            "affline_emb_B_D": net.affline_norm,
            "final_layer_out": net.final_layer,
            **{
                f"block0_{n}_branch_out": s.block
                for n, s in zip(("fa", "ca", "mlp"), block0.blocks, strict=True)
            },
            **{f"block0_sub{i}_out": sub for i, sub in enumerate(block0.blocks)},
            **{f"{name}_out": block for name, block in net.blocks.items()},
        }
        hooks = [
            module.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, output))
            for name, module in modules.items()
        ]
        attention = block0.blocks[0].block
        hooks.append(
            attention.register_forward_hook(
                lambda m, inputs, _o: seen.__setitem__("qkv", m.queries_keys_values(*inputs))
            )
        )
        y = net(x, times, mask, text=text, padding_mask=padding, view_indices=views)
        for hook in hooks:
            hook.remove()
        q, k, v = (part.transpose(0, 1) for part in seen.pop("qkv"))
        cos, _, additive = net.layout(height, width, x.device, x.dtype).tables
        angles = rotary_angles(CONFIG.head_width, height // 2, width // 2, False)
        mid = seen | {
            "net_input_channels": net.input_channels(x, mask, padding, views),
            "block0_q_after_norm_rope": q,
            "block0_k_after_norm_rope": k,
            "block0_v": v,
            "extra_pos_emb_B_T_H_W_D": additive.expand(2, *additive.shape),
            "rope_angles_L_1_1_D": angles.repeat(CONFIG.views, 2)[:, None, None],
        }
        assert len(cos) == len(additive)
        return {
            "in.x": x,
            "in.timesteps": times,
            "in.condition_video_input_mask": mask,
            "in.padding_mask": padding,
            "in.view_indices_B_T": views,
            "in.crossattn_emb": text,
            **{f"mid.{name}": value for name, value in mid.items()},
            "out.y": y,
            "out.y_default_views_zero_padding_mask": net(x, times, mask, text=text),
            "out.y_default_views_zero_padding_mask_zero_text": net(x, times, mask),
        }

    def positions(self):
        rows, columns = (size // CONFIG.patch for size in self.clean.shape[-2:])
        out = {}
        for rounded, rotary, additive in ((False, "f32", "f32"), (True, "bf16_buffers", "bf16")):
            angles = rotary_angles(CONFIG.head_width, rows, columns, rounded)
            table = additive_embedding(CONFIG.width, rows, columns, rounded)
            out[f"rope_angles_L_1_1_D.{rotary}"] = angles.repeat(CONFIG.views, 2)[:, None, None]
            out[f"extra_sincos_1_T_H_W_D.{additive}"] = table.expand(CONFIG.views, -1, -1).reshape(
                1, CONFIG.views, rows, columns, -1
            )
        for name, width in (("temporal", 4), ("spatial", 4)):
            frequencies = rotary_frequencies(width, False)
            out[f"rope_dim_range.{name}.f32"] = -torch.log10(frequencies) / 4
        return out

    def concat(self):
        cameras = encode_views(lambda x: x, self.views)
        twice = [self.normal(2, 16, 1, *CAMERA) for _ in self.views]
        return {
            "lidar": self.lidar,
            "rgb": cameras,
            "padded": self.clean,
            "split_lidar": self.lidar,
            "split_rgb": cameras,
            **{f"batch2_view{i}": view for i, view in enumerate(twice)},
            "batch2_reference_rgb": encode_views(lambda x: x, twice, published_order=True),
        }

    def branch(self, x, sigma, condition, corruption, prefix, drop=False, brief=False):
        got = self.model.denoise(x, sigma, condition, corruption, drop_condition=drop)
        out = {"augment_sigma": corruption.sigma, "augment_noise": corruption.noise, "x0": got.x0}
        if not brief:
            out |= {"net_in": got.network_input, "net_out": got.network_output, "timestep": got.noise_level}
            out["x0_unreplaced"] = got.unreplaced
        return got, {f"{prefix}.{name}": value for name, value in out.items()}

    def denoise(self):
        views = torch.arange(CONFIG.views)[None]
        padding = torch.zeros(1, 1, 8, 8)
        out = {
            "gt_latent": self.clean,
            "batch.video": self.lidar,
            "batch.t5_text_embeddings": self.text,
            "batch.padding_mask": padding,
            "view_indices_B_T": views,
            "condition_video_indicator": condition_indicator(CONFIG.views),
            "condition_video_input_mask": condition_indicator(CONFIG.views).expand(
                1, 1, CONFIG.views, *self.clean.shape[-2:]
            ),
            **{f"batch.image_rgb_{i}": view for i, view in enumerate(self.views)},
        }
        cases = [("text", s) for s in ("80", "3", "0.02")] + [("zerotext", "3")]
        for kind, level in cases:
            text = self.text if kind == "text" else torch.zeros_like(self.text)
            condition, case = Condition(self.clean, text, padding, views), f"{kind}.sigma{level}"
            sigma = torch.tensor([float(level)]).double()
            x = self.clean + sigma * self.normal(*self.clean.shape)
            x = x.float().double()
            out |= {f"{case}.xt": x, f"{case}.sigma": sigma}
            results = []
            for name, told, aug in (("cond", condition, 0.06), ("uncond", condition.without_text(), 1.5)):
                got, entries = self.branch(x, sigma, told, self.corruption(aug), f"{case}.{name}")
                out |= entries
                results.append(got.x0)
            out[f"{case}.x0_cfg1.5"] = guided(*results, GUIDANCE)
            out[f"{case}.logvar"] = self.model.log_variance(got.noise_level)
        case, sigma = "input_guidance.sigma3", out["text.sigma3.sigma"]
        x, condition = out["text.sigma3.xt"], Condition(self.clean, self.text)
        corruption = self.corruption(0.1)
        with_cameras, entries = self.branch(x, sigma, condition, corruption, f"{case}.cond", brief=True)
        out |= entries
        blank, entries = self.branch(
            x, sigma, condition.without_text(), corruption, f"{case}.uncond", drop=True
        )
        out |= {k: v for k, v in entries.items() if k.endswith(("net_in", ".x0"))}
        return out | {f"{case}.xt": x, f"{case}.x0_cfg1.5": guided(with_cameras.x0, blank.x0, GUIDANCE)}

    def denoise_bf16(self):
        maker = replace_model(self)
        half = self.clean.bfloat16()
        condition, out = Condition(half, self.text.bfloat16()), {"gt_latent": half}
        for level in ("0.4",):
            sigma = torch.tensor([float(level)]).bfloat16()
            x, case = half + sigma * self.normal(*half.shape).bfloat16(), f"sigma{level}"
            results = []
            for name, told, aug in (("cond", condition, 0.06), ("uncond", condition.without_text(), 1.5)):
                corruption = Corruption(torch.tensor([aug]).bfloat16(), self.normal(*half.shape).bfloat16())
                got = maker.denoise(x, sigma, told, corruption)
                results.append(got.x0)
                prefix = f"{case}.{name}"
                out |= {
                    f"{prefix}.augment_sigma": corruption.sigma,
                    f"{prefix}.augment_noise": corruption.noise,
                }
                out |= {f"{prefix}.net_in": got.network_input, f"{prefix}.net_out": got.network_output}
                out[f"{prefix}.x0"] = got.x0
            out |= {f"{case}.xt": x, f"{case}.x0_cfg1.5": guided(*results, GUIDANCE)}
        return out

    def sampler(self):
        noise = self.normal(*self.clean.shape)
        fixed = FixedCorruption(0.001)(self.clean)
        out = {
            "gt_latent": self.clean,
            "t5_text_embeddings": self.text,
            "initial_noise": noise,
            "fixed_corruption.augment_sigma": fixed.sigma,
            "fixed_corruption.noise": fixed.noise,
        }
        for mode, kind, steps in (
            ("fixed", "text", 4),
            ("fixed", "text", 35),
            ("fixed", "zerotext", 4),
            ("fixed", "zerotext", 35),
            ("random", "text", 4),
            ("random", "zerotext", 4),
        ):
            case = f"{mode}_corruption.{kind}.steps{steps}"
            condition = Condition(self.clean, self.text if kind == "text" else None)
            draws, evaluations = [], []

            def corrupt(mode=mode, draws=draws):
                if mode == "fixed":
                    return fixed
                draws.append(self.corruption(float(torch.rand((), generator=self.generator))))
                return draws[-1]

            def denoiser(x, sigma, condition=condition, corrupt=corrupt, evaluations=evaluations):
                sigma = torch.tensor([sigma]).double()
                pair = [
                    self.model.denoise(x, sigma, told, corrupt()).x0
                    for told in (condition, condition.without_text())
                ]
                evaluations.append(pair)
                return guided(*pair, GUIDANCE)

            out[f"{case}.sample"] = adams_bashforth_2(denoiser, noise * 80, karras_sigmas(steps + 1, 0.02))
            if draws:
                for i, name in enumerate(("x0_cond", "x0_uncond")):
                    out[f"{case}.{name}"] = torch.cat([pair[i] for pair in evaluations])
            if draws:
                out[f"{case}.augment_sigma"] = torch.cat([d.sigma for d in draws])
                out[f"{case}.augment_noise_slots123"] = torch.cat([d.noise[:, :, 1:] for d in draws])
        return out

    def training(self):
        out = {"gt_latent": self.clean, "t5_text_embeddings": self.text}
        names = self.config()["training_grad_norm_order"]
        stored = ("logvar.1", "affline_norm", "to_q.1", "view_embeddings", "x_embedder")
        for case, level in (("a", 0.3), ("b", 2.0)):
            self.model.zero_grad()
            sigma, epsilon = torch.tensor([level]).double(), self.normal(*self.clean.shape)
            corruption = self.corruption(0.2)
            noisy = self.clean + sigma.reshape(-1, 1, 1, 1, 1) * epsilon
            made = self.model.denoise(noisy, sigma, Condition(self.clean, self.text), corruption)
            got = published_loss(self.clean, made.x0, self.model.log_variance(made.noise_level), sigma)
            got.loss.backward()
            gradients = {n: p.grad.clone() for n, p in self.model.named_parameters()}
            norms = torch.stack([gradients[n].norm() for n in names])
            values = {
                "sigma": sigma,
                "epsilon": epsilon,
                "augment_sigma": corruption.sigma,
                "augment_noise": corruption.noise,
                "net_in": made.network_input,
                "net_out": made.network_output,
                "x0_pred": made.x0,
                "logvar": got.log_variance,
                "weight_per_sigma": got.weight,
                "edm_loss_mean": got.weighted_error,
                "mse_mean": got.squared_error,
                "loss": got.loss,
                **{
                    f"grad.{n}": g
                    for n, g in gradients.items()
                    if "block1" not in n and any(part in n for part in stored)
                },
            }
            out |= {f"{case}.{k}": v.detach() for k, v in values.items()}
            out |= {f"{case}.grad_norms": norms.float(), f"{case}.grad_norm_total": norms.norm().float()}
        for name in [n for n in out if n.endswith(("grad_norms", "grad_norm_total"))]:
            out[name] = out[name].double()
        return out


def replace_model(maker):
    """The same weights wholly in bfloat16 with rounded tables."""
    half = DiffusionModel(replace(CONFIG), rounded_positions=True)
    half.load_state_dict(maker.model.state_dict())
    return half.bfloat16()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--full", type=Path, help="folder with published vectors (dit/)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    maker = Maker(args.seed)
    (args.folder / "config.json").write_text(json.dumps(maker.config(), indent=1) + "\n")

    def save(name, tensors):
        keep = ("grad_norms", "grad_norm_total")
        tensors = {
            k: (v if k.endswith(keep) or not v.is_floating_point() else v.float()).contiguous().clone()
            for k, v in tensors.items()
        }
        save_file(tensors, args.folder / f"{name}.safetensors")

    save("weights", maker.model.state_dict())
    with torch.no_grad():
        save("net_forward", maker.net_forward())
        save("pos_emb_tiny", maker.positions())
        save("concat", maker.concat())
        save("denoise", maker.denoise())
        save("denoise_bf16", maker.denoise_bf16())
        save("sampler", maker.sampler())
    save("training", maker.training())
    for name in PUBLISHED if args.full else ():
        shutil.copyfile(args.full / name, args.folder / name)
    size = sum(p.stat().st_size for p in args.folder.iterdir())
    print(f"{args.folder}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
