package size

import (
	"math"
	"math/big"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "1": 1, "4096": 4096, "10737418240": 10 << 30, "512B": 512, "512b": 512,
		"10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "10gib": 10 << 30, "10 GiB": 10 << 30,
		"1K": 1 << 10, "1M": 1 << 20, "1T": 1 << 40, "1P": 1 << 50, "1KiB": 1 << 10, "1MiB": 1 << 20, "1TiB": 1 << 40, "1PiB": 1 << 50,
		"1.5G": 3 << 29, "0.5K": 512, "1.25MiB": 5 << 18, "9223372036854775807": math.MaxInt64, "007K": 7 << 10, " 1.5T ": 3 << 39, "64 MiB": 64 << 20, "1E": 1 << 60, "100Mi": 100 << 20, "1EiB": 1 << 60,
	} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for text, why := range map[string]string{
		"": "number", "G": "number", ".5G": "number", "5.G": "number", "-1": "negative", " -5G": "negative", "+1": "unit", "1e9": "unit",
		"10GB": "1000 or of 1024", "1kb": "1000 or of 1024", "1X": "unit", "1GiBB": "unit", "1..5G": "number", "1.2.3G": "number",
		"0.1K": "whole", "1.5": "whole", "9223372036854775808": "whole", "8192P": "whole", "99999999999999999999": "whole",
		"1.0000000000000000000000G": "whole", "１G": "unit", "10G extra": "unit", "0x10": "unit",
		"8E": "whole", "NaN": "unit", "inf": "unit", "1_000": "unit", "1EB": "1000 or of 1024", "1Gib2": "unit", "1i": "unit", "iB": "number",
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v; want it refused for %q", text, err, why)
		}
	}
}

// What is accepted has exactly the value that arithmetic without limits gives it.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"10G", "1.5GiB", "0.000001P", "8191P", "10GB", "", "18446744073709551615K", "1.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.TrimSpace(text)
		got, err := Parse(text)
		if err != nil {
			return
		}
		if got < 0 {
			t.Fatalf("%q is %d", text, got)
		}
		end := strings.IndexFunc(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if end < 0 {
			end = len(text)
		}
		want, ok := new(big.Rat).SetString(text[:end])
		unit := strings.ToLower(strings.TrimSpace(text[end:]))
		if !ok || len(unit) > 3 {
			t.Fatalf("%q was accepted", text)
		}
		shift := map[byte]uint{'k': 10, 'm': 20, 'g': 30, 't': 40, 'p': 50, 'e': 60}
		if unit != "" && unit != "b" {
			want.Mul(want, new(big.Rat).SetInt64(1<<shift[unit[0]]))
		}
		if !want.IsInt() || want.Num().Cmp(big.NewInt(int64(got))) != 0 {
			t.Fatalf("%q is %d, want %v", text, got, want)
		}
		if again, err := Parse(strings.ReplaceAll(text, "iB", "")); err == nil && strings.HasSuffix(text, "iB") && again != got {
			t.Fatalf("%q is %d, without iB %d", text, got, again)
		}
	})
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
