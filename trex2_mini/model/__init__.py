"""T-Rex2's four parts (image encoder, visual and text prompt encoder, box decoder) and the model that joins them."""
