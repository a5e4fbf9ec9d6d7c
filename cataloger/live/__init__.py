"""A model that answers over HTTP, a few products at a time, with what the nightly job would publish of them."""
