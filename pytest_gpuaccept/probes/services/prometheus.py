"""What Prometheus says over its HTTP API: its targets, what it stored, its alerts, how long it keeps.

Owns the questions and the parsers of the answers. Must not judge, and changes nothing there.
"""

import datetime as dt
import ipaddress
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

from pytest_gpuaccept.errors import Unmeasurable
from pytest_gpuaccept.probes.services.exposition import TEMPERATURES

READY, RULES, RUNTIME = "/-/ready", "/api/v1/rules", "/api/v1/status/runtimeinfo"
TARGETS = "/api/v1/targets?state=active"
TOPICS: Mapping[str, str] = {
    "temperature": r"(?i)(?:gpu|nvidia|nvml|dcgm|memory)_?\w*temp",
    "Xid": r"(?i)(?<![a-z])xid(?![a-z])",
    "PCIe errors": r"(?i)pcie_(?:replay|correctable)|(?<![a-z])aer(?![a-z])",
}
"""What alerts are wanted for -> what the expression of one names."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
USUAL_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


def stored_query(seconds: float) -> str:
    """Return the path that asks for every temperature stored in the last `seconds` s, as it was scraped.

    A range selector gives the samples themselves, with their times: an instant query would repeat the last
    one for five minutes.
    """
    names = "|".join(TEMPERATURES)
    return "/api/v1/query?" + urlencode({"query": f'{{__name__=~"{names}"}}[{max(1, math.ceil(seconds))}s]'})


def _refuse(answer: str, error: Exception) -> Unmeasurable:
    said = f"{type(error).__name__}: {error}"
    return Unmeasurable(f"the answer of Prometheus cannot be read ({said[:120]}): {answer[:80]!r}")


def scraped(answer: str, base: str, hostname: str, oldest: dt.datetime) -> tuple[bool, str]:
    """Say whether every target of the machine is up, without error, and was scraped after `oldest`.

    The server at `base` itself is none. Of a server that looks after many machines only those targets count
    that bear the machine's name; where none does, those do that bear no name but an address, and all of a server
    that runs on the machine, as those of containers.
    """
    try:
        others = [target for target in json.loads(answer)["data"]["activeTargets"] if not _is_itself(target, base)]
        local = _place(base)[0] in LOOPBACK
        here = [target for target in others if local or _is_address(_place(str(target["scrapeUrl"]))[0])]
        targets = [target for target in others if _is_of(target, base, hostname)] or here
        states = {str(target["scrapeUrl"]): _target_flaw(target, oldest) for target in targets}
    except UNREADABLE as error:
        raise _refuse(answer, error) from None
    fresh = [url for url, flaw in states.items() if not flaw]
    of = "besides itself" if states or not others else f"of {hostname} (of {len(others)} others)"
    note = f"{len(fresh)} of {len(states)} targets {of} are up and freshly scraped"
    rest = [*(f"{url} {flaw}" for url, flaw in states.items() if flaw), *fresh]
    return bool(fresh) and len(fresh) == len(states), f"{note}: {'; '.join(rest)[:300]}" if rest else note


def _target_flaw(target: Mapping[str, Any], oldest: dt.datetime) -> str:
    """Return what is wrong with a target, '' when nothing is; a time without a zone cannot be compared (TypeError)."""
    if target["health"] != "up":
        return f"is {target['health']}"
    if target["lastError"]:
        return f"says {target['lastError']}"
    scraped_at = dt.datetime.fromisoformat(target["lastScrape"])
    return "" if scraped_at > oldest else f"was scraped last at {target['lastScrape']}"


def _is_itself(target: Mapping[str, Any], base: str) -> bool:
    (host, port), (own_host, own_port) = _place(str(target["scrapeUrl"])), _place(base)
    return port == own_port and host in (*LOOPBACK, own_host)


def _place(url: str) -> tuple[str, int | None]:
    """Return host and port of an address."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or USUAL_PORTS.get(parts.scheme)


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def _is_of(target: Mapping[str, Any], base: str, hostname: str) -> bool:
    """Say whether a target is on the machine: by its name, or by loopback where the server is asked there too."""
    host, own = _place(str(target["scrapeUrl"]))[0], hostname.partition(".")[0].lower()
    here = _place(base)[0] in LOOPBACK and host in LOOPBACK
    return here or (own != "" and host.partition(".")[0] == own)


def stored(answer: str) -> dict[str, list[tuple[float, float]]]:
    """Return the stored (time, temperature) by the GPU's UUID; what is no number is left out."""
    try:
        data = json.loads(answer)["data"]
        if data["resultType"] != "matrix":
            raise ValueError(data["resultType"])
        found: dict[str, list[tuple[float, float]]] = {}
        for series in data["result"]:
            samples = [(float(at), float(value)) for at, value in series["values"]]
            uuid = str(series["metric"].get("UUID", ""))
            found.setdefault(uuid, []).extend(s for s in samples if all(map(math.isfinite, s)))
    except UNREADABLE as error:
        raise _refuse(answer, error) from None
    return {uuid: sorted(samples) for uuid, samples in found.items() if uuid}


def movement(samples: Sequence[tuple[float, float]]) -> float:
    """Return by how many C a temperature moved over its samples, 0 without any."""
    values = [value for _, value in samples]
    return max(values) - min(values) if values else 0.0


def alerts(answer: str) -> dict[str, list[str]]:
    """Return the alerts that are evaluated without error, by topic."""
    try:
        rules = list(_alerting(json.loads(answer)["data"]["groups"]))
    except UNREADABLE as error:
        raise _refuse(answer, error) from None
    return {
        topic: [name for name, query in rules if re.search(pattern, query)] for topic, pattern in TOPICS.items()
    }  # fmt: skip


def _alerting(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield name and expression of every alert in good health."""
    for group in groups:
        for rule in group["rules"]:
            if rule["type"] == "alerting" and rule["health"] == "ok":
                yield str(rule["name"]), str(rule["query"])


def retention(answer: str) -> str:
    """Return for how long, and up to which size, Prometheus keeps what it scraped."""
    try:
        kept = str(json.loads(answer)["data"]["storageRetention"].strip())
    except UNREADABLE as error:
        raise _refuse(answer, error) from None
    if not kept:
        message = "Prometheus does not say how long it keeps its data"
        raise Unmeasurable(message)
    return kept
