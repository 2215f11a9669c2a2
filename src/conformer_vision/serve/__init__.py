"""Answer over HTTP with a trained model: bounded in everything, in one process.

- `limits`: bounds, `receiving`, `bodies`: from request to images; `batching`, `worker`: to answers.
- `models`: what is loaded; `service`: what requests share; `predicting`, `explaining`: routes that compute.
- `routes`: the table that `app` and `openapi` are made of; `protocol`, `lifecycle`: connections and signals.

Nothing here imports torch: an exported file is served without it.
"""
