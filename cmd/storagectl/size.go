package main

import (
	"math"
	"strconv"
	"strings"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/size"
)

// parseSize reads a size, as size.Parse does.
func parseSize(s string) (int64, error) {
	n, err := size.Parse(s)
	if err != nil {
		return 0, storage.E("read size", storage.KindInvalid, strconv.Quote(s), err)
	}
	return int64(n), nil
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

// valueFlag is a flag whose value read takes in.
type valueFlag struct {
	kind, text string // kind is what help calls the value
	read       func(string) error
}

// String implements pflag.Value.
func (f *valueFlag) String() string { return f.text }

// Set implements pflag.Value.
func (f *valueFlag) Set(s string) error {
	f.text = s
	return f.read(s)
}

// Type implements pflag.Value.
func (f *valueFlag) Type() string { return f.kind }

// sizeFlag is a flag for a size; what bytes leads to is nil unless it is given.
func sizeFlag(bytes **int64) *valueFlag {
	return &valueFlag{kind: "SIZE", read: func(s string) error {
		n, err := parseSize(s)
		*bytes = &n
		return storage.Cause(err) // the flag says what was read
	}}
}
