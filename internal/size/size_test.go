package size

import "testing"

func TestParse(t *testing.T) {
	good := map[string]Bytes{"0": 0, "4096": 4096, "10G": 10 << 30, "10GB": 10 << 30, "10GiB": 10 << 30, "10gib": 10 << 30,
		" 1.5T ": 3 << 39, "64 MiB": 64 << 20, "7B": 7, "1K": 1024, "8E": 0, "0.5K": 512}
	delete(good, "8E")
	for s, want := range good {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "G", "-1", "+1", "1e9", "0x10", "10X", "8E", "NaN", "inf", "1_000", "99999999999999999999"} {
		if got, err := Parse(s); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", s, got)
		}
	}
}

func TestStringReadsBack(t *testing.T) {
	for _, b := range []Bytes{0, 1, 512, 4096, 64 << 20, 10 << 30, 3 << 40} {
		if got, err := Parse(b.String()); err != nil || got != b {
			t.Errorf("%d prints as %q and reads as %d, %v", b, b.String(), got, err)
		}
	}
	if got := Bytes(1500 << 20).String(); got != "1.5GiB" {
		t.Errorf("got %q", got)
	}
}
