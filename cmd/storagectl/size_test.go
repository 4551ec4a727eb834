package main

import (
	"math"
	"math/big"
	"strings"
	"testing"

	storage "github.com/storaged/storaged"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "10737418240": 10 << 30, "512B": 512, "512b": 512,
		"10G": 10 << 30, "10g": 10 << 30, "10GiB": 10 << 30, "10gib": 10 << 30, "10 GiB": 10 << 30,
		"1K": 1 << 10, "1M": 1 << 20, "1T": 1 << 40, "1P": 1 << 50, "1KiB": 1 << 10, "1MiB": 1 << 20, "1TiB": 1 << 40, "1PiB": 1 << 50,
		"1.5G": 3 << 29, "0.5K": 512, "1.25MiB": 5 << 18, "9223372036854775807": math.MaxInt64, "007K": 7 << 10,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for text, why := range map[string]string{
		"": "number", "G": "number", ".5G": "number", "5.G": "number", "-1": "unit", "+1": "unit", "1e9": "unit",
		"10GB": "1000 or of 1024", "1kb": "1000 or of 1024", "1X": "unit", "1GiBB": "unit", "1..5G": "number", "1.2.3G": "number",
		"0.1K": "whole", "1.5": "whole", "9223372036854775808": "whole", "8192P": "whole", "99999999999999999999": "whole",
		"1.0000000000000000000000G": "whole", "１G": "unit", "10G extra": "unit", "0x10": "unit",
	} {
		_, err := parseSize(text)
		if storage.KindOf(err) != storage.KindInvalid || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v; want it refused for %q", text, err, why)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for bytes, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 1 << 40: "1 TiB",
		3<<29 + 1: "1.5 GiB", 1<<30 - 1: "1 GiB", 1234567890: "1.15 GiB", 123456789012: "115 GiB", math.MaxInt64: "8 EiB", -1024: "-1 KiB",
		math.MinInt64: "-8 EiB",
	} {
		if got := formatSize(bytes); got != want {
			t.Errorf("%d is %q, want %q", bytes, got, want)
		}
	}
}

// What is accepted has exactly the value that arithmetic without limits gives it.
func FuzzParseSize(f *testing.F) {
	for _, seed := range []string{"10G", "1.5GiB", "0.000001P", "8191P", "10GB", "", "18446744073709551615K", "1.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseSize(text)
		if err != nil {
			if storage.KindOf(err) != storage.KindInvalid {
				t.Fatalf("%q: %v", text, err)
			}
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
		shift := map[byte]uint{'k': 10, 'm': 20, 'g': 30, 't': 40, 'p': 50}
		if unit != "" && unit != "b" {
			want.Mul(want, new(big.Rat).SetInt64(1<<shift[unit[0]]))
		}
		if !want.IsInt() || want.Num().Cmp(big.NewInt(got)) != 0 {
			t.Fatalf("%q is %d, want %v", text, got, want)
		}
		if again, err := parseSize(strings.ReplaceAll(text, "iB", "")); err == nil && strings.HasSuffix(text, "iB") && again != got {
			t.Fatalf("%q is %d, without iB %d", text, got, again)
		}
	})
}
