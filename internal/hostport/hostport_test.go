package hostport

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ text, want, wrong string }{
		{"a", "a:7001", ""},
		{"storage-1.example.com:17001", "storage-1.example.com:17001", ""},
		{"10.0.0.1", "10.0.0.1:7001", ""},
		{"10.0.0.1:1", "10.0.0.1:1", ""},
		{"::1", "[::1]:7001", ""},
		{"[::1]", "[::1]:7001", ""},
		{"[fe80::1%eth0]:7", "[fe80::1%eth0]:7", ""},
		{"", "", "blank"},
		{" ", "", "blank"},
		{"a b", "", "blanks"},
		{"http://a:7001", "", "without http://"},
		{"a/b", "", "path"},
		{"a:x", "", "port \"x\""},
		{"a:0", "", "port \"0\""},
		{"a:70000", "", "port"},
		{"a:1:2", "", "IPv6"},
		{"[a]", "", "IPv6"},
		{"[::1", "", "IPv6"},
		{":7001", "", "blank"},
		{"0.0.0.0:7001", "", "can reach"},
		{"ä", "", "letters"},
	} {
		got, err := Parse(c.text, "7001")
		if got != c.want || (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%q: %q, %v; want %q, %q", c.text, got, err, c.want, c.wrong)
		}
	}
}

func TestHost(t *testing.T) {
	for _, c := range []struct{ text, want, wrong string }{
		{"a", "a", ""},
		{"127.0.0.1", "127.0.0.1", ""},
		{"::1", "::1", ""},
		{"[::1]", "::1", ""},
		{"127.0.0.1:31301", "", "write 127.0.0.1 without :31301"},
		{"[::1]:7", "", "without :7"},
		{"http://x", "", "write x, without http://"},
		{" ", "", "blank"},
		{"::", "", "can reach"},
		{"a:", "", "port"},
	} {
		got, err := Host(c.text)
		if got != c.want || (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%q: %q, %v; want %q, %q", c.text, got, err, c.want, c.wrong)
		}
	}
}
