package main

import (
	"errors"
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
