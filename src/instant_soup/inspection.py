"""`instant_soup.tickets.inspect` under the name that model cards and documents use."""

from instant_soup.tickets.inspect import *  # noqa: F403
