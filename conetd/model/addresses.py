"""How the text of an IP address is read."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, inet_pton

from conetd.model.rules import IPAddress


def read_address(text: str) -> IPAddress:
    """The address a text means; an IPv4 address in IPv6 clothes is an IPv4 address. Raises ValueError.

    A long policy has thousands of them, and `ipaddress` takes five times as long for the text of an IPv4 address.
    """
    try:
        return IPv4Address(int.from_bytes(inet_pton(AF_INET, text)))
    except (OSError, ValueError):
        address = ipaddress.ip_address("%" if "%" in text else text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
