"""`instant_soup.tickets.compact` under the name that model cards and documents use."""

from instant_soup.tickets.compact import *  # noqa: F403
