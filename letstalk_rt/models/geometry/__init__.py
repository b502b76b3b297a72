"""Face landmarks and the dense warp that follows from them."""
