package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

func newVolumeLabel(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "label NAME KEY=VALUE... KEY-...",
		Short: "Change the labels of a volume",
		Long: `Sets labels of a volume, and removes those whose KEY is followed by a hyphen. The rest stays. Setting a label that the
volume has, and removing one that it does not have, succeeds.

Labels mean nothing to the cluster; 'storagectl volume list --label' finds volumes by them. A KEY is a name, or a DNS
name, a slash and a name, as in example.com/team. Names and VALUEs have 1 to 63 letters, digits, hyphens, underscores
and dots, with a letter or digit at both ends; a VALUE may be empty. A volume has at most 64 labels, of 4096 bytes
together.`,
		Example: "  storagectl volume label web env=prod team=shop\n  storagectl volume label web env=test team-",
		Args: func(_ *cobra.Command, args []string) error {
			switch len(args) {
			case 0:
				return errors.New("NAME is missing")
			case 1:
				return errors.New("nothing to change; give KEY=VALUE or KEY-")
			}
			return nil
		},
		ValidArgsFunction: func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			names := a.volumeNames
			if len(args) > 0 {
				names = a.labels
			}
			return a.completes(-1, names)(c, args, typed)
		},
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Volume, error) {
			change, err := parseLabelChange(args[1:])
			if err != nil {
				return api.Volume{}, labelError("modify", args[0], err)
			}
			return c.ModifyVolume(ctx, args[0], 0, api.VolumeChange{Labels: change})
		}, viewVolume, func(w io.Writer, v api.Volume, _ bool) {
			fmt.Fprintf(w, "volume %s: %s\n", v.Name, cmp.Or(labelsText(v.Labels), "no labels"))
		}),
	}
}

// parseLabelChange reads KEY=VALUE, which sets a label, and KEY-, which removes it.
func parseLabelChange(args []string) (change storage.LabelChange, err error) {
	var set []string
	for _, arg := range args {
		if key, removed := strings.CutSuffix(arg, "-"); removed && !strings.Contains(arg, "=") {
			change.Remove = append(change.Remove, key)
		} else {
			set = append(set, arg)
		}
	}
	if change.Set, err = storage.ParseLabels(set); err != nil {
		return change, err
	}
	return change, change.Check()
}

// labelError says of which volume the labels are that an error is about.
func labelError(op, volume string, err error) error {
	return storage.E(op, storage.KindInvalid, "volume "+volume, errors.Unwrap(err))
}

// labelsText writes labels for people, by key; empty: none.
func labelsText(labels map[string]string) string {
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, key+"="+labels[key])
	}
	return strings.Join(parts, ", ")
}

// registerLabel gives a command the flag --label, which completes with the labels that volumes have.
func (a *app) registerLabel(c *cobra.Command, value *[]string, help string) {
	c.Flags().StringArrayVar(value, "label", nil, help)
	_ = c.RegisterFlagCompletionFunc("label", a.completes(-1, a.labels)) // there is such a flag
}

// labels returns the labels that volumes have, each once; nothing when the cluster does not answer.
func (a *app) labels(ctx context.Context) []string {
	seen := map[string]bool{}
	for _, v := range a.volumes(ctx) {
		for key, value := range v.Labels {
			seen[key+"="+value] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
