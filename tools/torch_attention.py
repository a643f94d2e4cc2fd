#!/usr/bin/env python3
"""Times PyTorch's attention on the shapes of bench/cuda/gpu_kernels_bench, for comparison on the same GPU.

Prints a JSON object a line: "name" is the benchmark's, "backend" what PyTorch was told to use, "us" the microseconds
of a call (median), or "error" why that backend does not run. Each call reads keys and values that those before it did
not, as the layers of a model do; where CUDA graphs can be captured the calls are replayed as one. Ends with exit code 3
and "skipped: ..." where there is no PyTorch or no GPU.
"""

import argparse
import json
import statistics
import sys
import time

SKIPPED = 3
KV_HEADS = 8
GROUP = 4  # query heads of a kv head
HEAD_DIM = 128


def numbers(text):
    return [int(number) for number in text.split(",")]


outputs = [sys.stdout]


def emit(**fields):
    for output in outputs:
        print(json.dumps(fields), file=output, flush=True)


class Case:
    """Keys and values of one decode step, in as many copies as the caches cannot hold."""

    def __init__(self, torch, batch, tokens, cold_bytes):
        self.torch = torch
        self.name = f"attend_dense/batch:{batch}/tokens:{tokens}"
        self.bytes = batch * KV_HEADS * tokens * HEAD_DIM * 2 * 2
        free = torch.cuda.mem_get_info()[0]
        self.num_layers = int(max(1, min(-(-cold_bytes // self.bytes), free * 6 // 10 // self.bytes, 64)))
        self.fits = self.bytes < free * 8 // 10
        if not self.fits:
            return
        made = dict(dtype=torch.bfloat16, device="cuda")
        shape = (batch, KV_HEADS, tokens, HEAD_DIM)
        self.layers = [(torch.randn(shape, **made), torch.randn(shape, **made)) for _ in range(self.num_layers)]
        # A group's queries share their kv head: they may stand as heads or as rows.
        rows = torch.randn((batch, KV_HEADS, GROUP, HEAD_DIM), **made)
        self.queries = {"heads": rows.reshape(batch, KV_HEADS * GROUP, 1, HEAD_DIM), "rows": rows}

    def measure(self, attend, seconds):
        """Microseconds of a call of attend(keys, values), and whether a graph was replayed."""
        torch = self.torch

        def calls():
            for keys, values in self.layers:
                attend(keys, values)

        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            calls()
            calls()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                calls()
            replay, graphed = graph.replay, True
        except RuntimeError:
            torch.cuda.synchronize()
            replay, graphed = calls, False
        replay()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        times, total = [], 0.0
        while len(times) < 5 or total < seconds:
            start.record()
            replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
            total += times[-1] * 1e-6
        return statistics.median(times) / self.num_layers, graphed

    def report(self, backend, attend, expected, seconds):
        """Measures and prints; returns the first layer's output, as [batch, kv heads, group, head_dim]."""
        try:
            output = attend(*self.layers[0]).reshape(self.queries["rows"].shape).float()
            if expected is not None:
                error = float((output - expected).norm() / expected.norm())
                # Written so that NaN fails.
                if not error < 0.05:
                    emit(name=self.name, backend=backend, error=f"relative difference {error:.3f} to another backend")
                    return None
            us, graphed = self.measure(attend, seconds)
        except Exception as error:  # whatever a backend refuses with
            self.torch.cuda.synchronize()
            emit(name=self.name, backend=backend, error=str(error).strip().split("\n")[0][:200])
            return None
        emit(name=self.name, backend=backend, us=round(us, 3), bytes=self.bytes,
             bytes_per_second=round(self.bytes / us * 1e6), layers=self.num_layers, graph=graphed)
        return output


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32])
    parser.add_argument("--tokens", type=numbers, default=[8192, 32768, 122880])
    parser.add_argument("--seconds", type=float, default=75, help="after which nothing new is begun")
    parser.add_argument("--case_seconds", type=float, default=0.15, help="how long each backend is timed on a shape")
    parser.add_argument("--cold_mib", type=int, default=256, help="what is read before anything is read again")
    parser.add_argument("--json", help="a file to write the same lines to")
    arguments = parser.parse_args()
    if arguments.json:
        outputs.append(open(arguments.json, "w"))
    deadline = time.monotonic() + arguments.seconds

    try:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention
    except ImportError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return SKIPPED
    if not torch.cuda.is_available():
        print("skipped: PyTorch finds no GPU", file=sys.stderr)
        return SKIPPED
    torch.manual_seed(1)
    emit(device=torch.cuda.get_device_name(), torch=torch.__version__, cuda=torch.version.cuda,
         cudnn=torch.backends.cudnn.version())

    backends = [(name, getattr(SDPBackend, attribute)) for name, attribute in [
        ("flash", "FLASH_ATTENTION"), ("cudnn", "CUDNN_ATTENTION"), ("efficient", "EFFICIENT_ATTENTION"),
        ("math", "MATH")] if hasattr(SDPBackend, attribute)]
    shapes = [(batch, tokens) for batch in arguments.batch for tokens in arguments.tokens]
    with torch.no_grad():
        for batch, tokens in shapes:
            case = Case(torch, batch, tokens, arguments.cold_mib << 20)
            if not case.fits:
                emit(name=case.name, error="does not fit in memory")
                continue
            expected = None
            for name, backend in backends:
                # It makes copies of the keys and values, for every head.
                if name == "math" and case.bytes > 1 << 30:
                    continue
                for layout, queries in case.queries.items():
                    if time.monotonic() > deadline:
                        emit(name=case.name, backend=f"{name}/{layout}", error="no time left")
                        continue

                    def attend(keys, values, backend=backend, queries=queries, layout=layout):
                        with sdpa_kernel(backend):
                            return scaled_dot_product_attention(queries, keys, values, enable_gqa=layout == "heads")

                    output = case.report(f"{name}/{layout}", attend, expected, arguments.case_seconds)
                    expected = output if expected is None else expected
            del case, expected
            torch.cuda.empty_cache()

        # Last, as compiling takes its time: the largest shapes first.
        try:
            from torch.nn.attention.flex_attention import flex_attention
        except ImportError:
            return 0
        flex = torch.compile(flex_attention, dynamic=False)
        for batch, tokens in reversed(shapes):
            if time.monotonic() > deadline:
                break
            case = Case(torch, batch, tokens, arguments.cold_mib << 20)
            if case.fits:
                queries = case.queries["heads"]
                case.report("flex", lambda keys, values, queries=queries: flex(queries, keys, values, enable_gqa=True),
                            None, arguments.case_seconds)
            del case
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
