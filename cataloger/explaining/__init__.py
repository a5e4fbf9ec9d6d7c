"""Why a product has its category: which words and which parts of its picture spoke for it, and which products are like it."""
