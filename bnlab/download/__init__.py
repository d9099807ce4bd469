"""Downloads: what there is to fetch, and fetching it. No torch here, so that a listing answers at once."""
