"""Face landmarks and the dense warp that is computed from them."""
