"""Jacobi's method against LAPACK."""

import pytest
import torch

from stem_torchrec.balancing.eigen import spectrum
from tests.balancing.grams import KINDS, gradients, gram_of


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_tasks", [2, 3, 8, 33])
def test_values_and_vectors(num_tasks, kind):
    gram = gram_of(gradients(kind, num_tasks, 20, 1e3).double())
    values, vectors = spectrum(gram)
    size = gram.abs().max()
    expected = torch.linalg.eigvalsh(gram)
    torch.testing.assert_close(values.sort().values / size, expected / size, rtol=0, atol=1e-13)
    again = vectors @ torch.diag(values) @ vectors.T
    torch.testing.assert_close(again / size, gram / size, rtol=0, atol=1e-12)
    eye = torch.eye(num_tasks, dtype=torch.float64)
    torch.testing.assert_close(vectors.T @ vectors, eye, rtol=0, atol=1e-12)


def test_rows_of_zeros_and_equal_entries():
    matrix = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]]).double()
    values, vectors = spectrum(matrix)
    assert values.sort().values.tolist() == pytest.approx([0.0, 1.0, 3.0])
    assert vectors[1].abs().sort().values.tolist() == [0.0, 0.0, 1.0]
    assert spectrum(torch.tensor([[4.0]]).double()).values.tolist() == [4.0]
