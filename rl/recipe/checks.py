"""Range checks that the recipe's sections share."""

from data.typed_recipe import RecipeError


def require_positive(section: str, owner: object, *names: str) -> None:
    """Raise RecipeError for the first of the fields `names` of `owner` that is not above 0."""
    for name in names:
        if not getattr(owner, name) > 0:
            raise RecipeError(f"'{section}.{name}' must be above 0, not {getattr(owner, name)}")


def require_not_negative(section: str, owner: object, *names: str) -> None:
    """Raise RecipeError for the first of the fields `names` of `owner` that is below 0."""
    for name in names:
        if not getattr(owner, name) >= 0:
            raise RecipeError(f"'{section}.{name}' must not be negative, not {getattr(owner, name)}")
