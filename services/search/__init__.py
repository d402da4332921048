"""Search: which trial a study runs next. `Scheduler` decides between the arms, Optuna proposes parameters.

Its parts: `scheduler` (what runs next), `proposals` (asking until a proposal is new and within the constraints),
`samplers` (Optuna), `constraints` (what is allowed), `asha` (early stopping) and `selection` (what is retrained).

Nothing is imported here: the comparison needs `constraints`, and must not wait for Optuna.
"""
