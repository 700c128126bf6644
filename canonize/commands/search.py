"""What ``canonize search`` does once its arguments are read."""

from __future__ import annotations

import time

from canonize.commands.evaluate import GOOD, Where, check_device, prepare
from canonize.evaluate.libraries import need_all
from canonize.evaluate.page import write_page
from canonize.evaluate.tables import as_text
from canonize.search.section import write_search
from canonize.search.study import Search, default_storage
from canonize.search.study import search as carry_out


def search(wanted: Search, where: Where, storage: str | None) -> int:
    """Search, write and print what was found."""
    need_all((wanted.data,), wanted.objectives, (), extra="search")
    prepare(where.folder)
    check_device(wanted.device)
    start = time.monotonic()
    with where.show() as progress:
        found = carry_out(wanted, storage or default_storage(where.folder), where.workers.jobs, progress)
    section = write_search(found, where.folder)
    write_page(where.folder / "report.html", section.title, [section], time.monotonic() - start)
    for line in section.lines:
        where.say(line)
    where.say("")
    if section.table is not None:
        where.say(as_text(section.table))
    where.say(f"\nwritten to {where.folder}: report.html, trials.csv, best.json, pictures")
    return GOOD
