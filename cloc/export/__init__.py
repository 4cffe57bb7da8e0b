"""Export of a trained model to other libraries, with proof of parity; stands on ``encoder``, beside ``engine``."""
