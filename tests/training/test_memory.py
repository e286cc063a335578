import subprocess
import sys

import pytest
import torch

from stem_torchrec.training.memory import peak_memory_bytes

MIB = 1 << 20
OF_A_NEW_PROCESS = """
import torch
from stem_torchrec.training.memory import peak_memory_bytes
before = peak_memory_bytes(torch.device("cpu"))
block = bytearray(b"x") * (256 << 20)
with_block = peak_memory_bytes(torch.device("cpu"))
del block
print(before, with_block, peak_memory_bytes(torch.device("cpu")))
"""


def test_peak_is_of_this_process_and_stays() -> None:
    """Not of the one that started it, which here is made the larger."""
    block = bytearray(b"x") * (1536 * MIB)
    own = peak_memory_bytes(torch.device("cpu"))
    command = [sys.executable, "-c", OF_A_NEW_PROCESS]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, with_block, after = map(int, output.split())
    assert own > len(block)
    assert before < 1024 * MIB
    assert 250 * MIB < with_block - before < 400 * MIB
    assert after == pytest.approx(with_block, abs=32 * MIB)
