"""Signing in to the page with an identity provider that speaks OpenID Connect."""
