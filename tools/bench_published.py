# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the published 7.2 B model on this GPU, with random weights made on it.

    python tools/bench_published.py --out DIR --load-from /tmp    # one H100/H200, about six minutes
    python tools/bench_published.py --out DIR --device cpu --tiny    # checks the script itself

Every number is measured in one run: the bfloat16 matmul rate of the GPU, attention kernels, then the network
call and whole frames (camera latents to LiDAR latent) in each mode. FLOP are counted from the sizes. Writes
``bench_published.json``; needs torch and einops only.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F

from lidargen_ros.files import replacing
from lidargen_ros.models.checkpoints import load_diffusion
from lidargen_ros.models.dit_config import DiTConfig
from lidargen_ros.models.dit_cost import call_flops
from lidargen_ros.models.dit_denoiser import DiffusionModel
from lidargen_ros.models.dit_graph import GraphedCall
from lidargen_ros.models.published_options import PublishedOptions
from lidargen_ros.models.published_sampling import (
    TEXT_TOKENS,
    LatentSizes,
    fast_attention,
    sample_latent,
)

TINY = DiTConfig(width=96, heads=3, blocks=3, adaln_width=16, text_width=40)


class Bench:
    def __init__(self, args):
        self.device = torch.device(args.device)
        self.cuda = self.device.type == "cuda"
        self.tiny = args.tiny
        self.config = TINY if args.tiny else DiTConfig()
        self.sizes = LatentSizes((8, 12), (10, 10)) if args.tiny else LatentSizes()
        self.results = {"machine": self.machine(), "config": vars(self.config).copy()}

    def machine(self):
        facts = {"torch": torch.__version__, "python": platform.python_version()}
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {
                "gpu": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
            }
        else:
            facts["cpu"] = platform.processor() or platform.machine()
        return facts

    def seconds(self, function, repeats=3, warmups=1):
        """Median wall time of ``function()`` with the device idle before and after."""
        for _ in range(warmups):
            function()
        times = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    def wait(self):
        if self.cuda:
            torch.cuda.synchronize()

    def matmul_rate(self):
        """Best sustained bfloat16 rate (TFLOP/s) over square matrices and the shapes of this network."""
        tokens, width = sum(self.slot_lengths()), self.config.width
        shapes = [(tokens, width, width), (tokens, width, 4 * width), (tokens, 4 * width, width)]
        shapes += [(64, 64, 64)] if self.tiny else [(8192,) * 3, (16384,) * 3]
        rates = {}
        for m, k, n in shapes:
            a = torch.randn(m, k, device=self.device, dtype=torch.bfloat16)
            b = torch.randn(n, k, device=self.device, dtype=torch.bfloat16)
            count = (
                2 if self.tiny else max(1, int(4e14 / (2 * m * k * n)))
            )  # about 0.6 s, to include throttling

            def run(a=a, b=b, count=count):
                for _ in range(count):
                    F.linear(a, b)

            rates[f"{m}x{k}x{n}"] = 2 * m * k * n * count / self.seconds(run) / 1e12
        return rates

    def attention_rates(self):
        """TFLOP/s of each attention kernel on the self-attention of this network."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        tokens, heads = sum(self.slot_lengths()), self.config.heads
        shape = (1, tokens, heads, self.config.head_width)
        q, k, v = (
            torch.randn(shape, device=self.device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)
        )
        rates = {}
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
            if backend is SDPBackend.MATH and self.cuda:
                continue  # needs the whole score matrix
            try:
                with sdpa_kernel(backend):
                    seconds = self.seconds(lambda: F.scaled_dot_product_attention(q, k, v))
            except RuntimeError as reason:
                rates[backend.name] = f"not available: {str(reason).splitlines()[0]}"
                continue
            rates[backend.name] = 4 * tokens**2 * self.config.width / seconds / 1e12
        return rates

    def slot_lengths(self, dropped=False):
        sizes = [self.sizes.lidar] + [self.sizes.camera] * (self.config.views - 1)
        if not dropped:
            sizes = [self.sizes.padded] * self.config.views
        patch = self.config.patch
        return [-(-h // patch) * -(-w // patch) for h, w in sizes]

    def build(self):
        """Random bfloat16 weights, made on the device: no float32 copy ever exists."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        with torch.device("meta"):
            model = DiffusionModel(self.config, rounded_positions=True)
        model = model.to(torch.bfloat16).to_empty(device=self.device).eval().requires_grad_(False)
        generator = torch.Generator(self.device).manual_seed(0)
        model.net.init_weights(generator)
        for parameter in model.parameters():
            if not parameter.any():  # adaLN maps start at zero; zeros would flatter power and clocks
                parameter.normal_(std=0.02, generator=generator)
        weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        self.results["weights"] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "gb": weights / 1e9,
            "peak_gb_while_building": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None,
            "seconds": time.perf_counter() - start,
        }
        return model

    def load(self, model, folder):
        """Write the weights, load them as a user would, and give back the loaded model."""
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            path = Path(temporary) / "model.pt"
            torch.save(model.state_dict(), path)
            model.to_empty(device="meta")
            if self.cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            loaded = load_diffusion(path, self.device)
            self.wait()
            seconds = time.perf_counter() - start
        self.results["load"] = {
            "seconds": seconds,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None,
            "peak_of_weights": torch.cuda.max_memory_allocated() / 1e9 / self.results["weights"]["gb"]
            if self.cuda
            else None,
        }
        self.say(f"load: {self.results['load']}")
        return loaded

    def call(self, model, text, dropped, repeats=3):
        """One network call: seconds, TFLOP/s, peak memory."""
        height, width = self.sizes.padded
        views, channels = self.config.views, self.config.latent_channels
        x = torch.randn(1, channels, views, height, width, device=self.device, dtype=torch.bfloat16)
        inputs = {
            "noise_level": torch.zeros(1, device=self.device, dtype=torch.bfloat16),
            "condition_mask": torch.ones_like(x[:, :1]),
            "content": (self.sizes.lidar, *((self.sizes.camera,) * (views - 1))) if dropped else None,
        }
        if text:
            inputs["text"] = x.new_zeros(1, views * TEXT_TOKENS, self.config.text_width)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        with fast_attention(self.device), torch.no_grad():
            function = model.call or model.net
            seconds = self.seconds(lambda: function(x, **inputs), repeats, warmups=2)
        flops = call_flops(self.config, self.slot_lengths(dropped), TEXT_TOKENS if text else None)
        return {
            "seconds": seconds,
            "tflop": flops / 1e12,
            "tflop_per_s": flops / seconds / 1e12,
            "of_matmul_rate": flops / seconds / 1e12 / self.rate,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None,
        }

    def frame(self, model, options):
        """One whole sampling, camera latents to LiDAR latent."""
        channels = self.config.latent_channels
        cameras = torch.randn(
            1, channels, self.config.views - 1, *self.sizes.camera, device=self.device, dtype=torch.bfloat16
        )
        calls = 0
        inner = model.call or model.net

        def counting(*args, **kwargs):
            nonlocal calls
            calls += 1
            return inner(*args, **kwargs)

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        outer, model.call = model.call, counting
        sample = [None]

        def run():
            sample[0] = sample_latent(model, cameras, options, sizes=self.sizes)

        seconds = self.seconds(run, repeats=1, warmups=0)
        model.call = outer
        text = not options.skip_zero_text
        flops = calls * call_flops(
            self.config, self.slot_lengths(options.drop_padding), TEXT_TOKENS if text else None
        )
        return {
            "seconds": seconds,
            "calls": calls,
            "pflop": flops / 1e15,
            "tflop_per_s": flops / seconds / 1e12,
            "of_matmul_rate": flops / seconds / 1e12 / self.rate,
            "finite": bool(sample[0].isfinite().all()),
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else None,
        }

    def run(self, compile_blocks, folder):
        with torch.no_grad():
            rates = self.matmul_rate()
        self.rate = max(rates.values())
        self.results["bf16_matmul_tflop_per_s"] = {"best": self.rate, **rates}
        self.say(f"bf16 matmul: {self.rate:.1f} TFLOP/s")
        self.results["attention_tflop_per_s"] = self.attention_rates()
        self.say(f"attention: {self.results['attention_tflop_per_s']}")
        model = self.build()
        self.say(f"weights: {self.results['weights']}")
        if folder:
            model = self.load(model, folder)
        cases = {"text": (True, False), "no_text": (False, False), "no_text_no_padding": (False, True)}
        calls = self.results["calls"] = {}

        def measure(prefix):
            for name, (text, dropped) in cases.items():
                calls[f"{prefix}.{name}"] = got = self.call(model, text, dropped)
                self.say(
                    f"call {prefix}.{name}: {got['seconds']:.4f} s, {got['tflop_per_s']:.1f} TFLOP/s, "
                    f"{got['of_matmul_rate']:.1%} of matmul, peak {got['peak_gb']} GB"
                )

        measure("eager")
        if compile_blocks:
            start = time.perf_counter()
            model.net.compile_blocks(dynamic=False)
            try:
                measure("compiled")
            except RuntimeError as reason:  # no compiler on this machine: the rest is still worth measuring
                self.results["compile_failed"] = str(reason)
                self.say(f"torch.compile FAILED, going on without: {str(reason).splitlines()[0]}")
                compile_blocks = False
                model.net.uncompile_blocks()
            self.results["compile_and_first_calls_s"] = time.perf_counter() - start
        if self.cuda:
            model.call = GraphedCall(model.net)
            measure("compiled_graph" if compile_blocks else "graph")
            model.call = None
        self.frames(model)

    def frames(self, model):
        corrected = PublishedOptions.corrected()
        dropped = replace(corrected, drop_padding=True)
        modes = {
            "reference_work": PublishedOptions.reference().published_work(),
            "reference": PublishedOptions.reference(),
            "corrected": corrected,
            "corrected_no_padding": dropped,
            **{f"corrected_steps_{n}": replace(corrected, steps=n) for n in (16, 8, 4)},
            **{f"corrected_no_padding_steps_{n}": replace(dropped, steps=n) for n in (8, 4, 1)},
        }
        frames = self.results["frames"] = {}
        for name, options in modes.items():
            if self.tiny:
                options = replace(options, steps=min(options.steps, 2))
            frames[name] = got = self.frame(model, options)
            got["speedup"] = frames["reference_work"]["seconds"] / got["seconds"]
            self.say(
                f"frame {name}: {got['calls']} calls, {got['seconds']:.2f} s, {got['tflop_per_s']:.1f} TFLOP/s, "
                f"{got['of_matmul_rate']:.1%} of matmul, {got['speedup']:.2f} x, peak {got['peak_gb']} GB"
            )

    def say(self, line):
        print(line, flush=True)
        if self.out:
            with replacing(self.out / "bench_published.json") as temporary:
                temporary.write_text(json.dumps(self.results, indent=1))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for bench_published.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny network, to test this script on a CPU")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument(
        "--load-from", help="folder with 15 GB free: also measure loading a checkpoint from it"
    )
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "no CUDA device: the full model needs about 20 GB of GPU memory; try --device cpu --tiny"
        )
    bench = Bench(args)
    bench.out = args.out
    bench.run(not args.no_compile, args.load_from)


if __name__ == "__main__":
    main()
