package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

func newVolumeModify(a *app) *cobra.Command {
	var limits limitFlags
	c := &cobra.Command{
		Use:   "modify NAME [--max-iops N] [--max-bandwidth SIZE]",
		Short: "Change the limits of a volume",
		Long: `Changes how many requests and how many bytes a second the users of a volume may read and write together. What is not
given stays as it is; none, or 0, is no limit. The change takes effect at once, also for clients that are connected:
requests beyond a limit wait, none fails.

Each gateway holds its users to the limits. A volume that is attached exclusively has one gateway, so they are the
volume's; one that is shared by hosts or nodes gives each of them as much.`,
		Example:           "  storagectl volume modify web --max-iops 500 --max-bandwidth 100MiB\n  storagectl volume modify web --max-iops none",
		Args:              takes("NAME"),
		ValidArgsFunction: a.completeVolumes(1),
		RunE: func(c *cobra.Command, args []string) error {
			change := limits.change()
			if change == (storage.LimitsChange{}) {
				return storage.E("modify", storage.KindInvalid, "volume "+args[0],
					errors.New("nothing to change; give --max-iops, --max-bandwidth or both, for example --max-bandwidth 100MiB"))
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			v, err := client.ModifyVolume(c.Context(), args[0], 0, api.VolumeChange{Limits: change})
			if err != nil {
				return err
			}
			return a.show(viewVolume(v), func(w io.Writer, _ bool) { fmt.Fprintf(w, "volume %s: %s\n", v.Name, limitsText(v.Limits)) })
		},
	}
	limits.register(c)
	return c
}

// limitsText writes limits for people.
func limitsText(l storage.VolumeLimits) string {
	var parts []string
	if l.MaxIOPS != 0 {
		parts = append(parts, strconv.FormatInt(l.MaxIOPS, 10)+" requests/s")
	}
	if l.MaxBytesPerSecond != 0 {
		parts = append(parts, formatSize(l.MaxBytesPerSecond)+"/s")
	}
	if len(parts) == 0 {
		return "no limits"
	}
	return "at most " + strings.Join(parts, ", ")
}

// limitFlags are the flags for a volume's limits.
type limitFlags struct{ iops, bandwidth limitFlag }

func (f *limitFlags) register(c *cobra.Command) {
	f.iops = limitFlag{what: "NUMBER", parse: func(s string) (int64, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return 0, errors.New("write a whole number, or none")
		}
		return n, nil
	}}
	f.bandwidth = limitFlag{what: "SIZE", parse: func(s string) (int64, error) {
		n, err := parseSize(s)
		if err != nil {
			return 0, errors.New(causeText(err))
		}
		return n, nil
	}}
	c.Flags().Var(&f.iops, "max-iops", "`NUMBER` of requests a second; none = no limit")
	c.Flags().Var(&f.bandwidth, "max-bandwidth", "`SIZE` that may be read and written a second, 100MiB for example; none = no limit")
	complete(c, "max-iops", "none")
	complete(c, "max-bandwidth", "none")
}

// change returns what the flags that were given say.
func (f *limitFlags) change() storage.LimitsChange {
	return storage.LimitsChange{MaxIOPS: f.iops.value, MaxBytesPerSecond: f.bandwidth.value}
}

// limitFlag is a flag for one limit; value is nil unless it is given.
type limitFlag struct {
	what  string
	parse func(string) (int64, error)
	value *int64
	text  string
}

var _ pflag.Value = (*limitFlag)(nil)

// String implements pflag.Value.
func (f *limitFlag) String() string { return f.text }

// Set implements pflag.Value.
func (f *limitFlag) Set(s string) error {
	var n int64
	if s != "none" {
		var err error
		if n, err = f.parse(s); err != nil {
			return err
		}
	}
	f.value, f.text = &n, s
	return nil
}

// Type implements pflag.Value; it is what help shows.
func (f *limitFlag) Type() string { return f.what }
