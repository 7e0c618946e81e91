"""`instant_soup.tickets.layouts` under the name that model cards and documents use."""

from instant_soup.tickets.layouts import *  # noqa: F403
