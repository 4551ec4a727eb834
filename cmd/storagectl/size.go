package main

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
)

// parseSize reads what people write for a number of bytes: digits, perhaps with a decimal point, then perhaps one of
// K, M, G, T, P, alone or with "iB", in any case. Powers are of 1024. KB, MB and so on mean 1000 to some and 1024 to
// others, and are refused.
func parseSize(s string) (int64, error) {
	fail := func(why string) (int64, error) {
		return 0, storage.E("read size", storage.KindInvalid, strconv.Quote(s),
			fmt.Errorf("%s; write bytes, or a number with K, M, G, T or P, as in 10G", why))
	}
	number, unit := s, ""
	if i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		number, unit = s[:i], strings.ToLower(strings.TrimSpace(s[i:]))
	}
	shift, ok := unitShift(unit)
	if !ok {
		if shift, ok := unitShift(strings.TrimSuffix(unit, "b")); ok && shift > 0 && len(unit) == 2 {
			return fail(fmt.Sprintf("%q may mean powers of 1000 or of 1024", strings.ToUpper(unit)))
		}
		return fail("the unit is not known")
	}
	whole, fraction, _ := strings.Cut(number, ".")
	if whole == "" || strings.Contains(fraction, ".") || strings.HasSuffix(number, ".") {
		return fail("it does not begin with a number")
	}
	bytes, ok := scale(whole+fraction, len(fraction), shift)
	if !ok {
		return fail("it is not a whole number of bytes below 8 EiB")
	}
	return bytes, nil
}

func unitShift(unit string) (uint, bool) {
	switch unit {
	case "", "b":
		return 0, true
	case "k", "kib":
		return 10, true
	case "m", "mib":
		return 20, true
	case "g", "gib":
		return 30, true
	case "t", "tib":
		return 40, true
	case "p", "pib":
		return 50, true
	}
	return 0, false
}

// scale computes digits * 2^shift / 10^decimals, if it is whole and fits.
func scale(digits string, decimals int, shift uint) (int64, bool) {
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || decimals > 18 {
		return 0, false
	}
	hi, lo := bits.Mul64(n, 1<<shift)
	divisor := uint64(1)
	for range decimals {
		divisor *= 10
	}
	if hi >= divisor {
		return 0, false
	}
	quotient, rest := bits.Div64(hi, lo, divisor)
	return int64(quotient), rest == 0 && quotient <= math.MaxInt64
}

// formatSize writes a number of bytes for people: exactly if that is short, else with three digits.
func formatSize(n int64) string {
	if n < 0 {
		return "-" + formatSize(-max(n, -math.MaxInt64))
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, unit := float64(n), 0
	for value >= 1024 && unit < len(units)-1 {
		value /= 1024
		unit++
	}
	if value >= 1023.5 && unit < len(units)-1 { // would round to 1024
		value /= 1024
		unit++
	}
	precision := 0
	if value != math.Trunc(value) && value < 9.95 {
		precision = 2
	} else if value != math.Trunc(value) && value < 99.5 {
		precision = 1
	}
	text := strconv.FormatFloat(value, 'f', precision, 64)
	if precision > 0 {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text + " " + units[unit]
}

// sizeFlag is a flag for a size.
type sizeFlag struct {
	bytes int64
	set   bool
	text  string
}

// String implements pflag.Value.
func (f *sizeFlag) String() string { return f.text }

// Set implements pflag.Value.
func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err != nil {
		return errors.New(causeText(err)) // the flag says what was read
	}
	f.bytes, f.set, f.text = n, true, s
	return nil
}

// Type implements pflag.Value; it is what help shows.
func (f *sizeFlag) Type() string { return "SIZE" }
