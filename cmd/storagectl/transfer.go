package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/transfer"
)

// transferFlags are those that import and export share.
type transferFlags struct {
	jobs, connections int
	checksum, quiet   bool
}

func (f *transferFlags) register(c *cobra.Command) {
	c.Flags().IntVar(&f.jobs, "jobs", 16, "requests in flight")
	c.Flags().IntVar(&f.connections, "connections", 2, "NBD connections")
	c.Flags().BoolVar(&f.checksum, "checksum", false, "print the sha256 of all bytes, zeroes included")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "say nothing but errors and what was asked for")
}

func (f *transferFlags) check() error {
	return cmp.Or(within("jobs", f.jobs, 1, transfer.MaxJobs), within("connections", f.connections, 1, 64))
}

// within refuses a flag's value that is not among those from least to most.
func within(flag string, value, least, most int) error {
	if value < least || value > most {
		return fmt.Errorf("--%s is %d; use %d to %d", flag, value, least, most)
	}
	return nil
}

// transferView is the outcome of an import or export, for programs.
type transferView struct {
	Volume    string  `json:"volume"`
	File      string  `json:"file"`
	Bytes     int64   `json:"bytes"`
	DataBytes int64   `json:"data_bytes"` // what travelled
	ZeroBytes int64   `json:"zero_bytes"` // what did not
	Seconds   float64 `json:"seconds"`
	MBPerS    float64 `json:"mb_per_s"`
	SHA256    string  `json:"sha256,omitempty"`
}

// summary says in one line what was done.
func (v *transferView) summary(verb string) string {
	text := fmt.Sprintf("%s %s in %s (%.0f MB/s)", verb, formatSize(v.Bytes),
		shortDuration(time.Duration(v.Seconds*float64(time.Second))), v.MBPerS)
	if v.ZeroBytes > 0 {
		text += fmt.Sprintf("; %s of zeroes were not sent", formatSize(v.ZeroBytes))
	}
	return text
}

// unlessInterrupted runs fn and returns its result. When ctx ends it gives fn, which has seen that too, a moment to clean
// up; a read or write of a pipe cannot be taken back, so that fn may then be left to end with the process.
func unlessInterrupted(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(500 * time.Millisecond):
		return storage.E("", storage.KindCanceled, "", ctx.Err())
	}
}
