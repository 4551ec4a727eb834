// Package size reads and writes sizes in bytes as people write them. It is pure and safe for concurrent use.
//
// All units are powers of 1024, alone or with "iB", as in the field's storage tools: 10G and 10GiB are the same
// 10,737,418,240 bytes. It is the one reader of sizes of all programs, so that a text means the same to each.
package size

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// Bytes is a number of bytes that reads and prints as a size. It is a flag value and a YAML or JSON text.
type Bytes int64

const units = "KMGTPE"

// Parse reads what people write for a number of bytes: digits, perhaps with a decimal point, then perhaps one of K, M, G, T,
// P and E, alone or with "iB", in any case; "Gi", as Kubernetes writes it, is "GiB". KB, MB and so on mean powers of 1000 to some and of 1024 to others, and are
// refused, as is what is not a whole number of bytes. The error says what to write, and leaves it to the caller to name
// the text.
func Parse(s string) (Bytes, error) {
	fail := func(why string) (Bytes, error) {
		return 0, fmt.Errorf("%s; write bytes, or a number with K, M, G, T or P, as in 10G", why)
	}
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "-") {
		return fail("it is negative")
	}
	number, unit := s, ""
	if i := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }); i >= 0 {
		number, unit = s[:i], strings.ToUpper(strings.TrimSpace(s[i:]))
	}
	shift, ok := unitShift(unit)
	if !ok {
		if shift, ok := unitShift(strings.TrimSuffix(unit, "B")); ok && shift > 0 && len(unit) == 2 {
			return fail(fmt.Sprintf("%q may mean powers of 1000 or of 1024", unit))
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
	return Bytes(bytes), nil
}

// unitShift returns the power of two that a unit stands for; it is in capitals.
func unitShift(unit string) (uint, bool) {
	if unit == "" || unit == "B" {
		return 0, true
	}
	i := strings.IndexByte(units, unit[0])
	return uint(10 * (i + 1)), i >= 0 && (unit[1:] == "" || unit[1:] == "I" || unit[1:] == "IB")
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

// String prints the largest unit that divides the size, or one decimal of the largest that fits.
func (b Bytes) String() string {
	if b == 0 {
		return "0"
	}
	for i := len(units) - 1; i >= 0; i-- {
		unit := int64(1) << (10 * (i + 1))
		switch {
		case int64(b)%unit == 0:
			return fmt.Sprintf("%d%ciB", int64(b)/unit, units[i])
		case int64(b) >= unit:
			return fmt.Sprintf("%.1f%ciB", float64(b)/float64(unit), units[i])
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// Set implements pflag.Value.
func (b *Bytes) Set(s string) (err error) {
	*b, err = Parse(s)
	return err
}

// Type implements pflag.Value.
func (b *Bytes) Type() string { return "size" }
