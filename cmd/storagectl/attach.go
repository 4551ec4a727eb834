package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/host"
	"github.com/storaged/storaged/api/hostclient"
)

// socketVariable names the gateway's socket when --socket does not.
const socketVariable = "STORAGECTL_SOCKET"

// hostFlags are those of the commands that speak to the gateway of this host.
type hostFlags struct{ socket string }

func (f *hostFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.socket, "socket", "", "socket of this host's gateway (default: $"+socketVariable+", else "+host.DefaultSocket+")")
}

// within runs fn with the gateway of this host, for as long as the command may take: at least half a minute, because a
// device may have to wait for the cluster.
func (f *hostFlags) within(ctx context.Context, a *app, fn func(context.Context, host.Gateway) error) error {
	gateway, err := hostclient.New(cmp.Or(f.socket, a.getenv(socketVariable)))
	if err != nil {
		return err
	}
	defer func() { _ = gateway.Close() }()
	ctx, cancel := context.WithTimeout(ctx, max(a.settings.Timeout, 30*time.Second))
	defer cancel()
	return fn(ctx, gateway)
}

func newAttach(a *app) *cobra.Command {
	var flags hostFlags
	var q host.Request
	var via, access string
	c := &cobra.Command{
		Use:   "attach VOLUME",
		Short: "Make a volume a block device of this host",
		Long: `Makes a volume a block device of this host and prints its path. It speaks to the host's gateway ("storaged gateway"),
which holds the device until it is detached: also while the gateway itself, or any node, is restarted.

A volume is attached exclusively, unless --access shared says that others may attach it at the same time, shared too:
for cluster file systems and others that see to it themselves that hosts do not overwrite each other. With --access
readers the device is read-only, and so is everybody else's meanwhile: while readers have the volume nobody can write to
it. When somebody else has the volume, the command is refused and says who, and since when. --take-over takes it away:
when the command returns, nothing that the former holder still has under way can land, whether it is dead, frozen or
cut off.

Repeating the command is no error, and prints the same device. --via says how the device is made: nbd is the kernel's
network block device, fuse a loop device over a FUSE file, for hosts whose kernel has no nbd; auto chooses.`,
		Example: `  storagectl attach db
  mkfs.ext4 $(storagectl attach db) && mount /dev/storaged/db /srv/db
  storagectl attach db --take-over`,
		Args:              takes("VOLUME"),
		ValidArgsFunction: a.completes(1, a.volumeNames),
		RunE: func(c *cobra.Command, args []string) error {
			q.Volume, q.Via, q.Access = args[0], host.Via(via), storage.Access(access)
			return flags.within(c.Context(), a, func(ctx context.Context, g host.Gateway) error {
				at, err := g.Attach(ctx, q)
				if err != nil {
					return err
				}
				return a.show(at, func(w io.Writer, wide bool) {
					if fmt.Fprintln(w, at.Device); wide {
						writeAttachments(w, a, []host.Attachment{at}, true)
					}
				})
			})
		},
	}
	flags.register(c)
	c.Flags().StringVar(&access, "access", string(storage.AccessExclusive), "exclusive, shared or readers")
	c.Flags().StringVar(&via, "via", string(host.ViaAuto), "auto, nbd or fuse")
	c.Flags().BoolVar(&q.ReadOnly, "read-only", false, "make a device that cannot be written to")
	c.Flags().BoolVar(&q.TakeOver, "take-over", false, "take the volume from whoever has it attached")
	complete(c, "access", string(storage.AccessExclusive), string(storage.AccessShared), string(storage.AccessReaders))
	complete(c, "via", string(host.ViaAuto), string(host.ViaNBD), string(host.ViaFUSE))
	return c
}

func complete(c *cobra.Command, flag string, values ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
}

func newDetach(a *app) *cobra.Command {
	var flags hostFlags
	var force bool
	c := &cobra.Command{
		Use:   "detach VOLUME",
		Short: "Remove a volume's block device from this host",
		Long: `Removes a volume's block device from this host and gives the volume up, so that others can attach it. While the device
is in use (mounted, say) it is refused; --force removes it all the same, and whoever uses it gets errors. A volume that
is not attached is no error.

To end the attachment of a host that is gone and will not detach by itself: "storagectl volume detach".`,
		Example:           "  umount /srv/db && storagectl detach db",
		Args:              takes("VOLUME"),
		ValidArgsFunction: a.completes(1, a.attachedNames(&flags)),
		RunE: func(c *cobra.Command, args []string) error {
			if err := storage.CheckVolumeName(args[0]); err != nil {
				return err
			}
			return flags.within(c.Context(), a, func(ctx context.Context, g host.Gateway) error { return g.Detach(ctx, args[0], force) })
		},
	}
	flags.register(c)
	c.Flags().BoolVarP(&force, "force", "f", false, "remove the device although it is in use")
	return c
}

func newAttachments(a *app) *cobra.Command {
	var flags hostFlags
	c := &cobra.Command{
		Use:   "attachments",
		Short: "List the volumes that are block devices of this host",
		Args:  takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			return flags.within(c.Context(), a, func(ctx context.Context, g host.Gateway) error {
				list, err := g.Attachments(ctx)
				if err != nil {
					return err
				}
				return a.show(append([]host.Attachment{}, list...), func(w io.Writer, wide bool) { writeAttachments(w, a, list, wide) })
			})
		},
	}
	flags.register(c)
	return c
}

func writeAttachments(w io.Writer, a *app, list []host.Attachment, wide bool) {
	t := newTable("VOLUME", "DEVICE", "SIZE", "ACCESS", "VIA", "STATE", "SINCE").more(wide, "ATTACHMENT", "GENERATION", "LINK")
	for _, at := range list {
		access := string(at.Access)
		if at.ReadOnly {
			access += ", read-only"
		}
		t.row(at.Volume, orDash(at.Device), formatSize(at.SizeBytes), access, string(at.Via), string(at.State), a.ago(at.Since),
			fmt.Sprint(at.ID), at.Generation.String(), orDash(at.Link))
	}
	t.write(w, "Nothing is attached to this host.")
	for _, at := range list {
		if at.Reason != "" {
			fmt.Fprintf(w, "\n%s: %s\n", at.Volume, at.Reason)
		}
	}
}

// attachedNames returns a function that returns the volumes which are attached here; nothing when the gateway does not answer.
func (a *app) attachedNames(flags *hostFlags) func(context.Context) []string {
	return func(ctx context.Context) (names []string) {
		_ = flags.within(ctx, a, func(ctx context.Context, g host.Gateway) error { // without an answer there is nothing to complete
			list, err := g.Attachments(ctx)
			names = views(list, func(at host.Attachment) string { return at.Volume })
			return err
		})
		return names
	}
}
