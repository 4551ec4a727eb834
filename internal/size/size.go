// Package size reads and writes sizes in bytes as people write them. It is pure and safe for concurrent use.
//
// All units are powers of 1024, with or without "iB", as in the field's storage tools: 10G, 10GB and 10GiB are the same
// 10,737,418,240 bytes.
package size

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bytes is a number of bytes that reads and prints as a size. It is a flag value and a YAML or JSON text.
type Bytes int64

const units = "KMGTPE"

// Parse reads a number with an optional fraction and an optional unit: 4096, 10GiB, 1.5T.
func Parse(s string) (Bytes, error) {
	t := strings.ToUpper(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "B"), "I")
	shift := 0
	if n := len(t); n > 0 {
		if i := strings.IndexByte(units, t[n-1]); i >= 0 {
			shift = 10 * (i + 1)
			t = strings.TrimSpace(t[:n-1])
		}
	}
	fail := func(why string) (Bytes, error) {
		return 0, fmt.Errorf("size %q: %s; write 4096, 64MiB, 10GiB or 1.5T", s, why)
	}
	if t == "" || strings.ContainsAny(t, "+-EXP_INF") {
		return fail("not a number with a unit")
	}
	if v, err := strconv.ParseInt(t, 10, 64); err == nil {
		if v > math.MaxInt64>>shift {
			return fail("too large")
		}
		return Bytes(v << shift), nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil {
		return fail("not a number with a unit")
	}
	v := f * math.Ldexp(1, shift)
	if v >= math.MaxInt64 {
		return fail("too large")
	}
	return Bytes(math.Round(v)), nil
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
