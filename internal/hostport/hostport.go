// Package hostport reads the addresses that people write: HOST, HOST:PORT, [IPV6]:PORT. It says what is wrong with one and how
// to write it. It opens nothing and asks no name server.
package hostport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Parse reads HOST or HOST:PORT, an IPv6 address with or without brackets, and returns HOST:PORT; port is for an address
// without one.
func Parse(text, port string) (string, error) {
	if err := checkText(text); err != nil {
		return "", err
	}
	host := text
	if h, p, ok := split(text); ok {
		host, port = h, p
	}
	host, err := Host(host)
	if err != nil {
		return "", err
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("port %q: use 1 to 65535", port)
	}
	return net.JoinHostPort(host, port), nil
}

// Host reads a host's name or address, without a port, at which others can reach it; an IPv6 address may stand in brackets.
func Host(text string) (string, error) {
	if err := checkText(text); err != nil {
		return "", err
	}
	if h, p, ok := split(text); ok && h != "" {
		return "", fmt.Errorf("%q has a port; write %s without :%s", text, h, p)
	}
	host := text
	if inner, ok := strings.CutPrefix(text, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(host, ":") {
			return "", fmt.Errorf("%q is no IPv6 address in brackets", text)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() {
			return "", fmt.Errorf("%s is no address that reaches a machine; name the one that other machines can reach", host)
		}
		return host, nil
	}
	if strings.Contains(host, ":") {
		return "", fmt.Errorf("%q is no IPv6 address", text)
	}
	if len(host) > 253 {
		return "", fmt.Errorf("a host's name of %d characters; use at most 253", len(host))
	}
	for _, c := range []byte(host) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' {
			continue
		}
		return "", fmt.Errorf("%q is no host's name: use letters, digits, and - . _", text)
	}
	return host, nil
}

// split splits HOST:PORT; false for a host alone, an IPv6 address without brackets, say.
func split(text string) (host, port string, ok bool) {
	if _, err := netip.ParseAddr(text); err == nil {
		return "", "", false
	}
	host, port, err := net.SplitHostPort(text)
	return host, port, err == nil
}

// checkText finds what people write who think of something else than a host.
func checkText(text string) error {
	switch scheme, rest, ok := strings.Cut(text, "://"); {
	case strings.TrimSpace(text) == "":
		return errors.New("it is blank")
	case ok:
		return fmt.Errorf("%q begins with a scheme; write %s, without %s://", text, rest, scheme)
	case strings.ContainsAny(text, " \t\r\n"):
		return fmt.Errorf("%q has blanks in it", text)
	case strings.Contains(text, "/"):
		return fmt.Errorf("%q has a path; write the host only", text)
	}
	return nil
}
