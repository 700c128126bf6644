"""Proven for all inputs: a certificate of a canonical model, and the checker that trusts nothing in it.

It knows neither patterns nor plans: `relation` is what is claimed of two values, `linear`, `pointwise` and `moving` are
the rules, one equation an operator, and `checker` walks both graphs.
"""

from canonize.verify.certificate.checker import check
from canonize.verify.certificate.data import Certificate, hash_of
from canonize.verify.certificate.write import certificate_of

__all__ = ["Certificate", "certificate_of", "check", "hash_of"]
