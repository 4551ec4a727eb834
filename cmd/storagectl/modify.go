package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
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
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Volume, error) {
			change := limits.change()
			if change == (storage.LimitsChange{}) {
				return api.Volume{}, storage.E("modify", storage.KindInvalid, "volume "+args[0],
					errors.New("nothing to change; give --max-iops, --max-bandwidth or both, for example --max-bandwidth 100MiB"))
			}
			return c.ModifyVolume(ctx, args[0], 0, api.VolumeChange{Limits: change})
		}, viewVolume, func(w io.Writer, v api.Volume, _ bool) {
			fmt.Fprintf(w, "volume %s: %s\n", v.Name, limitsText(v.Limits))
		}),
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
type limitFlags struct{ iops, bandwidth *int64 }

func (f *limitFlags) register(c *cobra.Command) {
	count := &valueFlag{kind: "NUMBER", read: func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return errors.New("write a whole number, or none")
		}
		f.iops = &n
		return nil
	}}
	c.Flags().Var(orNone(count, &f.iops), "max-iops", "`NUMBER` of requests a second; none = no limit")
	c.Flags().Var(orNone(sizeFlag(&f.bandwidth), &f.bandwidth), "max-bandwidth", "`SIZE` that may be read and written a second, 100MiB for example; none = no limit")
	complete(c, "max-iops", "none")
	complete(c, "max-bandwidth", "none")
}

// orNone has a flag for a number read none as 0.
func orNone(f *valueFlag, value **int64) *valueFlag {
	number := f.read
	f.read = func(s string) error {
		if s == "none" {
			*value = new(int64)
			return nil
		}
		return number(s)
	}
	return f
}

// change returns what the flags that were given say.
func (f *limitFlags) change() storage.LimitsChange {
	return storage.LimitsChange{MaxIOPS: f.iops, MaxBytesPerSecond: f.bandwidth}
}
