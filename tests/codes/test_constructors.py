"""Functions that constructors of codes share."""

from jaxwgc.codes._constructors import is_prime


def test_primes_are_those_of_the_sieve():
    composite = {one * other for one in range(2, 1000) for other in range(2, 1000)}
    primes = {number for number in range(2000) if is_prime(number)}
    assert primes == set(range(2, 2000)) - composite
