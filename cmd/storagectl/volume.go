package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/client"
)

func newVolume(a *app) *cobra.Command {
	noun := newNoun("volume", "Make, show, grow, limit, label, remove, fill and copy volumes", newVolumeCreate(a), newVolumeList(a),
		newVolumeShow(a), newVolumeResize(a), newVolumeModify(a), newVolumeLabel(a), newVolumeDelete(a), newVolumeImport(a), newVolumeExport(a))
	noun.Aliases = []string{"volumes", "vol"}
	return noun
}

func newVolumeCreate(a *app) *cobra.Command {
	var size *int64
	var stripe int
	var request string
	var overcommit bool
	var limits limitFlags
	var labelTexts []string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Make a volume",
		Long: `Makes a volume that reads as zeroes and takes no room until it is written to.

A name has 1 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends. For SIZE, 10G and 10GiB
are both 10 x 1024^3 bytes, as with other storage tools; see 'storagectl help sizes'.

A volume lives in Raft groups of the cluster: one for each 64 GiB of SIZE, up to a power of two, unless --groups says
otherwise. Few groups answer small requests faster; many spread one volume's load over more nodes and disks. The number
stays when the volume grows: give one that will grow large more groups now.

A script that may run twice gives --request-id: the same id, name, size, limits and labels make one volume, and the
second run succeeds like the first.

Volumes take room as they are written, so all together may be larger than the stores. One that is larger than the stores
by itself is refused, and one with which all together would be beyond the nodes' --provision-limit; --overcommit makes
it.

What the limits bound, and how to change them, says 'storagectl volume modify --help'; of labels, 'storagectl volume
label --help'.`,
		Example: "  storagectl volume create web --size 10G\n  storagectl volume create db --size 1T --request-id install-42 -o json\n" +
			"  storagectl volume create scratch --size 50G --max-iops 500 --max-bandwidth 100MiB --label env=test",
		Args: takes("NAME"),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Volume, error) {
			if size == nil {
				return api.Volume{}, storage.E("create", storage.KindInvalid, "volume "+args[0], errors.New("--size is missing, for example --size 10G"))
			}
			labels, err := storage.ParseLabels(labelTexts)
			if err != nil {
				return api.Volume{}, labelError("create", args[0], err)
			}
			return c.CreateVolume(ctx, api.NewVolume{RequestID: request, Name: args[0], SizeBytes: *size, Groups: stripe,
				Limits: limits.change().Of(storage.VolumeLimits{}), Labels: labels, Overcommit: overcommit})
		}, viewVolume, func(w io.Writer, v api.Volume, _ bool) {
			fmt.Fprintf(w, "volume %s created: %s over %s\n", v.Name, formatSize(v.SizeBytes), plural(len(v.Groups), "group", "groups"))
		}),
	}
	c.Flags().Var(sizeFlag(&size), "size", "size of the volume, a multiple of 4096 bytes; 10G = 10GiB")
	c.Flags().IntVar(&stripe, "groups", 0, "`NUMBER` of groups to stripe over, a power of two; 0: one for each 64 GiB of SIZE")
	limits.register(c)
	a.registerLabel(c, &labelTexts, "`KEY=VALUE` of a label; may be given again")
	c.Flags().BoolVar(&overcommit, "overcommit", false, overcommitHelp)
	c.Flags().StringVar(&request, "request-id", "", "`ID` that makes a repeated request the same request")
	return c
}

// overcommitHelp is the help of the flag of all commands that make a volume, or a larger one.
const overcommitHelp = "also if the stores could not hold the volume full, or the cluster's provisioning limit is reached"

func newVolumeList(a *app) *cobra.Command {
	var filter api.VolumeFilter
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the volumes",
		Example: "  storagectl volume list\n  storagectl volume list --label env=prod --label team\n  storagectl volume list -o json | jq -r '.[].name'",
		Args:    takes(),
		RunE: asks(a, func(ctx context.Context, c *client.Client, _ []string) ([]api.Volume, error) {
			return c.Volumes(ctx, filter, "", 0)
		}, list(viewVolume), func(w io.Writer, list []api.Volume, wide bool) {
			if len(list) == 0 && len(filter.Labels) > 0 {
				fmt.Fprintf(w, "no volumes with %s\n", strings.Join(filter.Labels, ", "))
				return
			}
			a.writeVolumes(w, list, wide)
		}),
	}
	a.registerLabel(c, (*[]string)(&filter.Labels), "only volumes with this label: `KEY=VALUE`, or KEY for any value; may be given again, for more that they have")
	return c
}

func (a *app) writeVolumes(w io.Writer, list []api.Volume, wide bool) {
	t := newTable("NAME", "SIZE", "ALLOCATED", "STATE", "OPEN ON", "AGE").more(wide, "ID", "ON DISK", "IOPS", "BANDWIDTH", "GROUPS", "EPOCH", "GENERATION")
	for _, v := range list {
		t.row(v.Name, formatSize(v.SizeBytes), dashUnless(v.AllocatedBytes >= 0, formatSize(v.AllocatedBytes)), string(v.State), orDash(strings.Join(openOn(v), ",")), a.age(v.CreatedAt),
			v.ID.String(), dashUnless(v.OnDiskBytes >= 0, formatSize(v.OnDiskBytes)), dashUnless(v.Limits.MaxIOPS != 0, strconv.FormatInt(v.Limits.MaxIOPS, 10)),
			dashUnless(v.Limits.MaxBytesPerSecond != 0, formatSize(v.Limits.MaxBytesPerSecond)+"/s"), joinIDs(v.Groups), v.Epoch.String(), v.Generation.String())
	}
	t.write(w, "no volumes; 'storagectl volume create NAME --size SIZE' makes one")
}

// openOn names the nodes whose gateways hold the volume open.
func openOn(v api.Volume) []string {
	var names []string
	for _, s := range v.Sessions {
		names = append(names, nodeLabel(s.Node, s.NodeName))
	}
	for _, c := range v.Connections {
		names = append(names, nodeLabel(c.Node, c.NodeName))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func nodeLabel(id storage.NodeID, name string) string {
	if name != "" {
		return name
	}
	return id.String()
}

func joinIDs(ids []storage.GroupID) string {
	return strings.Join(views(ids, storage.GroupID.String), ",")
}

// age is how long ago t was, for people.
func (a *app) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return shortDuration(a.now().Sub(t))
}

// shortDuration writes the largest one or two units.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

func newVolumeShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME",
		Short: "Show a volume, and who has it open",
		Long: `Shows a volume. Its size is what its users see. Allocated is what of one copy holds data: what was written and neither
discarded nor zeroed since. On disk is the same of all copies. What was overwritten lies on the disks until it is cleared
away; it belongs to no volume, and 'storagectl node list' shows it as garbage.`,
		Args:              takes("NAME"),
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Volume, error) {
			return c.Volume(ctx, args[0])
		},
			viewVolume, a.writeVolume),
	}
}

func (a *app) writeVolume(w io.Writer, v api.Volume, _ bool) {
	made := ""
	if !v.CreatedAt.IsZero() {
		made = fmt.Sprintf("%s (%s ago)", v.CreatedAt.UTC().Format(time.RFC3339), a.age(v.CreatedAt))
	}
	used := "" // left out when it is not known
	if v.AllocatedBytes >= 0 {
		used = formatSize(v.AllocatedBytes) + " (" + percent(v.AllocatedBytes, v.SizeBytes) + ")"
	}
	onDisk := "" // likewise
	if v.OnDiskBytes >= 0 {
		onDisk = formatSize(v.OnDiskBytes) + " in all copies, without garbage"
	}
	limits := "" // left out when there are none
	if v.Limits != (storage.VolumeLimits{}) {
		limits = limitsText(v.Limits)
	}
	facts(w, "Name", v.Name, "ID", v.ID.String(), "State", string(v.State),
		"Size", fmt.Sprintf("%s (%d bytes)", formatSize(v.SizeBytes), v.SizeBytes), "Allocated", used, "On disk", onDisk, "Limits", limits, "Labels", labelsText(v.Labels),
		"Groups", joinIDs(v.Groups), "Epoch", v.Epoch.String(), "Generation", v.Generation.String(), "Created", made)
	if len(v.Sessions) == 0 && len(v.Connections) == 0 && len(v.Attachments) == 0 {
		fmt.Fprintln(w, "\nNobody has it open.")
		return
	}
	attachments := newTable("ATTACHMENT", "HOLDER", "ACCESS", "MODE", "GENERATION", "SINCE")
	for _, h := range v.Attachments {
		attachments.row(h.ID.String(), holderLabel(h), string(h.Access), mode(h.ReadOnly), h.Generation.String(), a.age(h.Since)+" ago")
	}
	attachments.section(w)
	sessions := newTable("SESSION", "GATEWAY", "MODE", "GENERATION", "OPENED")
	for _, s := range v.Sessions {
		sessions.row(s.ID.String(), nodeLabel(s.Node, s.NodeName), mode(s.ReadOnly), s.Generation.String(), a.age(s.OpenedAt)+" ago")
	}
	sessions.section(w)
	clients := newTable("CLIENT", "GATEWAY", "MODE", "CONNECTED")
	for _, c := range v.Connections {
		clients.row(c.Client, nodeLabel(c.Node, c.NodeName), mode(c.ReadOnly), a.age(c.OpenedAt)+" ago")
	}
	clients.section(w)
}

// holderLabel names a holder by its id, with the host if that is called otherwise, and says when it was not heard of.
func holderLabel(h api.Attachment) string {
	label := h.Holder.ID
	if h.Holder.Host != "" && h.Holder.Host != h.Holder.ID {
		label += " on " + h.Holder.Host
	}
	if h.Silent {
		label += " (silent)"
	}
	return label
}

func mode(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "read-write"
}

func newVolumeResize(a *app) *cobra.Command {
	var size string
	var overcommit bool
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Grow a volume",
		Long: `Grows a volume to SIZE, or by SIZE when it begins with a plus sign. The new bytes read as zeroes. A volume never
shrinks. Asking for the size it has already succeeds.

Clients that are connected see the new size when they reconnect, or when they ask for it; file systems are grown
afterwards by their own tools.`,
		Example:           "  storagectl volume resize web --size 20G\n  storagectl volume resize web --size +5G",
		Args:              takes("NAME"),
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: asks(a, func(ctx context.Context, c *client.Client, args []string) (api.Volume, error) {
			return resize(ctx, c, args[0], size, overcommit)
		}, viewVolume, func(w io.Writer, v api.Volume, _ bool) {
			fmt.Fprintf(w, "volume %s has %s\n", v.Name, formatSize(v.SizeBytes))
		}),
	}
	c.Flags().BoolVar(&overcommit, "overcommit", false, overcommitHelp)
	c.Flags().StringVar(&size, "size", "", "new `SIZE`, or with a plus sign what is added; 10G = 10GiB")
	return c
}

func resize(ctx context.Context, c *client.Client, name, size string, overcommit bool) (api.Volume, error) {
	if size == "" {
		return api.Volume{}, storage.E("resize", storage.KindInvalid, "volume "+name, errors.New("--size is missing, for example --size 20G or --size +5G"))
	}
	more, relative := strings.CutPrefix(size, "+")
	bytes, err := parseSize(more)
	if err != nil {
		return api.Volume{}, err
	}
	if relative {
		v, err := c.Volume(ctx, name)
		if err != nil {
			return v, err
		}
		if bytes > storage.MaxVolumeBytes-v.SizeBytes {
			return api.Volume{}, storage.E("resize", storage.KindInvalid, "volume "+name,
				fmt.Errorf("%s more would be above the largest volume, %s", formatSize(bytes), formatSize(storage.MaxVolumeBytes)))
		}
		bytes += v.SizeBytes
	}
	return c.ResizeVolume(ctx, name, api.NewSize{Bytes: bytes, Overcommit: overcommit})
}

func newVolumeDelete(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:     "delete NAME...",
		Aliases: []string{"rm"},
		Short:   "Remove volumes and their data",
		Long: `Removes volumes and their data, which cannot be brought back. A volume that somebody has open is refused.

On a terminal it asks first; elsewhere it needs --yes. When one of several fails, the rest are still tried.`,
		Example: "  storagectl volume delete scratch\n  storagectl volume delete old-1 old-2 --yes",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("NAME is missing")
			}
			return nil
		},
		ValidArgsFunction: a.completes(-1, a.volumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			var first error
			for _, name := range args {
				err := a.deleteVolume(c.Context(), name, yes)
				if first == nil {
					first = err
				} else if err != nil {
					a.report(c.Context(), err)
				}
				if c.Context().Err() != nil {
					break
				}
			}
			return first
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// deleteVolume deletes the volume that it asks about: its id guards against a namesake made meanwhile.
func (a *app) deleteVolume(ctx context.Context, name string, yes bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	v, err := c.Volume(ctx, name)
	if err != nil {
		return under("delete", err)
	}
	return a.remove(ctx, removal{op: "delete", subject: "volume " + name, yes: yes,
		question: fmt.Sprintf("Delete volume %s (%s, created %s ago) with all its data?", v.Name, formatSize(v.SizeBytes), a.age(v.CreatedAt)),
		do:       func() error { return c.DeleteVolume(ctx, name, v.ID) },
		done:     fmt.Sprintf("volume %s deleted", name)})
}

// under is an error of looking an object up, for whoever wanted to carry op out on it.
func under(op string, err error) error {
	if e, ok := errors.AsType[*storage.Error](err); ok {
		return storage.E(op, e.Kind, e.Subject, e.Err)
	}
	return err
}

// removal is what cannot be undone: it is done after a yes, or when the command line says it, and people are told when it is done.
type removal struct {
	op, subject    string // for errors
	yes            bool
	question, done string
	do             func() error
}

func (a *app) remove(ctx context.Context, r removal) error {
	if !r.yes {
		if err := a.confirm(ctx, r.op, r.subject, r.question); err != nil {
			return err
		}
	}
	if err := r.do(); err != nil {
		return err
	}
	if !a.forProgram() {
		fmt.Fprintln(a.out, r.done)
	}
	return nil
}

// confirm asks a person. It returns nil only after a yes.
func (a *app) confirm(ctx context.Context, op, subject, question string) error {
	if !a.inTerminal {
		return storage.E(op, storage.KindInvalid, subject, errors.New("nobody is there to be asked; give --yes if it is meant"))
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer := make(chan string, 1)
	go func() { answer <- readLine(a.in) }() // ends with the process if the person never answers
	select {
	case <-ctx.Done():
		fmt.Fprintln(a.err)
		return storage.E(op, storage.KindCanceled, subject, ctx.Err())
	case line := <-answer:
		if line = strings.ToLower(strings.TrimSpace(line)); line == "y" || line == "yes" {
			return nil
		}
		return storage.E(op, storage.KindCanceled, subject, errors.New("not confirmed; nothing was changed"))
	}
}

// readLine reads up to a newline or the end, byte by byte, so that nothing behind it is taken; at most 1 KiB.
func readLine(r io.Reader) string {
	var line []byte
	one := make([]byte, 1)
	for len(line) < 1<<10 {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' || err != nil {
			break
		}
		line = append(line, one[:n]...)
	}
	return string(line)
}
