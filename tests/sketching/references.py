"""Results of sketching by their definitions, in NumPy."""

import numpy as np

from tests.oracles import ridge_solution


def cross_validation_error(matrix, target, ridge):
    """Error of a ridge by definition: each row is predicted from all others."""
    errors = []
    for row in range(len(matrix)):
        other_rows = np.delete(matrix, row, axis=0)
        other_targets = np.delete(target, row, axis=0)
        solution = ridge_solution(other_rows, other_targets, ridge)
        errors.append((target[row] - matrix[row] @ solution) ** 2)
    return np.mean(errors)


def resistances_by_inverse(edges, weights, num_vertices):
    """Effective resistances by the pseudo-inverse of the graph's Laplacian."""
    incidence = np.zeros((len(edges), num_vertices))
    order = np.arange(len(edges))
    incidence[order, edges[:, 0]] += 1
    incidence[order, edges[:, 1]] -= 1
    laplacian = incidence.T * weights @ incidence
    inverse = np.linalg.pinv(laplacian, rcond=1e-11, hermitian=True)
    return np.einsum("ij,jk,ik->i", incidence, inverse, incidence)
