"""The campaigns by the platform that they are about: their modules, in the order of the page."""

CAMPAIGNS = {
    "cpu": ("sanitizers", "handlers", "fuzz", "repeatability", "lifetime"),
    "gpu": ("fuzz", "repeatability", "device"),
}
ALL = tuple(dict.fromkeys((*CAMPAIGNS["cpu"], *CAMPAIGNS["gpu"])))
