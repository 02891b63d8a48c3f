from ipaddress import ip_network

import pytest

from contracts.callbacks import check, parse, refusal
from contracts.errors import RefusedUrl

PRIVATE = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://Example.COM:443/Hook?Tenant=1", "https://example.com/Hook?Tenant=1"),
        ("https://example.com:8443/a/b%20c;d=1", "https://example.com:8443/a/b%20c;d=1"),
        ("http://10.1.2.3:80/x", "http://10.1.2.3/x"),
        ("https://[2606:4700:0:0::1111]/", "https://[2606:4700::1111]/"),
        ("https://xn--bcher-kva.example/?a=b?c", "https://xn--bcher-kva.example/?a=b?c"),
        ("https://under_score.example", "https://under_score.example/"),
    ],
)
def test_a_url_has_one_normal_form(url: str, normal: str) -> None:
    assert parse(url).url == normal
    assert parse(normal) == parse(url)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("ftp://example.com/", "begins with https://"),
        ("example.com/hook", "begins with https://"),
        ("https:example.com", "begins with https://"),
        ("https://me:s3cret@example.com/", "leave out user and password"),
        ("https://example.com/#part", "leave out the fragment"),
        ("https://bücher.example/", "xn--"),
        ("https://example.com/a b", "no spaces"),
        ("https://example.com\\@127.0.0.1/", "no spaces or unusual characters"),
        ("https://example.com:0/", "0 is no port"),
        ("https://example.com:70000/", "70000 is no port"),
        ("https://example.com./", "no host name"),
        ("https://-a.example/", "no host name"),
        ("https://2130706433/", "usual notation"),
        ("https://0x7f.1/", "usual notation"),
        ("https://0177.0.0.1/", "usual notation"),
        ("https://127.1/", "usual notation"),
        ("https://example.7/", "usual notation"),
        ("https://[::1%25lo]/", "no spaces or unusual characters"),
        ("https://" + "a" * 3000, "2,048"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(url: str, hint: str) -> None:
    with pytest.raises(RefusedUrl, match=hint) as caught:
        parse(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost:8080/",
        "https://api.localhost/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data",
        "http://example.com/",
        "http://93.184.216.34/",
    ],
)
def test_the_obvious_is_refused_without_a_resolver(url: str) -> None:
    with pytest.raises(RefusedUrl):
        check(parse(url))


def test_private_networks_can_be_permitted() -> None:
    for url in ("http://10.0.0.1/", "https://[fd00::1]/", "http://hook.internal/"):
        check(parse(url), PRIVATE)
    check(parse("http://localhost/"), [ip_network("127.0.0.0/8")])
    with pytest.raises(RefusedUrl, match="write https://"):
        check(parse("http://93.184.216.34/"), PRIVATE)
    with pytest.raises(RefusedUrl, match="metadata"):
        check(parse("https://[fd00:ec2::254]/"), PRIVATE)


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "::ffff:8.8.8.8"],
)
def test_public_addresses_are_connected_to(address: str) -> None:
    assert refusal(address) is None
    assert refusal(address, public=False) is not None


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.0.1"),
        *("169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1"),
        *("192.88.99.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1"),
        *("240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1", "::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1"),
        *(
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "3fff::1",
            "fc00::1",
            "fd00:ec2::254",
        ),
        *("fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "5f00::1", "4000::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
        *("", "localhost", "127.1", "0x7f000001"),
    ],
)
def test_no_other_address_is(address: str) -> None:
    assert refusal(address) is not None


def test_what_is_permitted_excludes_what_is_nobodys_or_a_clouds() -> None:
    everything = [ip_network("0.0.0.0/0"), ip_network("::/0")]
    assert refusal("192.168.1.1", everything) is None
    assert refusal("::ffff:192.168.1.1", everything) is None
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "0.0.0.0", "224.0.0.1", "ff02::1", "fe80::1%1"):
        assert refusal(address, everything) is not None
