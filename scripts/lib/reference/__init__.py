"""The pages of docs/reference, one module a page: each has ``page()``, its Markdown, made from the code."""
