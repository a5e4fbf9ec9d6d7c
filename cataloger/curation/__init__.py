"""What people know of products: pins, rules, and their answers to what they are asked."""
