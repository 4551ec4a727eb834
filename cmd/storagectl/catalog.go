package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/durable"
	"github.com/storaged/storaged/internal/transfer"
	"github.com/storaged/storaged/server/catalog"
)

func newCatalog(a *app) *cobra.Command {
	return newNoun("catalog", "Copy the catalog to a file, and look into such a copy", newCatalogBackup(a), newCatalogShow(a))
}

func newCatalogBackup(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "backup FILE|-",
		Short: "Copy the catalog to a file or to standard output",
		Long: `Copies the catalog: nodes, groups, volumes, and who may use them, as of one moment, with everything that was committed
before. The copy holds none of the volumes' bytes. It is for the case that the nodes that vote in the catalog are lost
for good: "storaged recover --from FILE" begins with it.

The file appears under its name when it is whole, checked and durable. An existing file is replaced only with --force;
one that cannot be replaced by a whole copy stays as it is. "storagectl catalog show FILE" says what is in it.`,
		Example: "  storagectl catalog backup catalog.bak\n  storagectl catalog backup /backup/catalog.bak --force\n  storagectl catalog backup - | gpg -e -r ops > catalog.gpg",
		Args:    takes("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.backupCatalog(c.Context(), args[0], force)
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "replace an existing file")
	return c
}

func newCatalogShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show FILE|-",
		Short: "Show what a copy of the catalog holds",
		Long: `Reads a copy that "storagectl catalog backup" has written, checks it, and shows the nodes, groups and volumes in it. It
needs no cluster. A damaged or truncated copy is refused. With -o json everything is shown.`,
		Example: "  storagectl catalog show catalog.bak",
		Args:    takes("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			state, err := a.readCatalog(args[0])
			if err != nil {
				return err
			}
			return a.show(viewCatalog(state), func(w io.Writer, _ bool) { writeCatalog(w, state) })
		},
	}
}

// backupCatalog writes a copy to path.
func (a *app) backupCatalog(ctx context.Context, path string, force bool) error {
	if _, err := os.Lstat(path); path != "-" && !force && !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return transfer.LocalError("open", path, err)
		}
		return storage.E("back up catalog to", storage.KindExists, path, errors.New("the file exists; --force replaces it"))
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	copied, err := client.BackupCatalog(ctx)
	if err != nil {
		return err
	}
	// What cannot be read back is no backup, and must not take the place of one.
	state, err := catalog.Restore(bytes.NewReader(copied))
	if err != nil {
		return storage.E("back up", storage.KindOf(err), "catalog", err)
	}
	if path == "-" {
		_, err := a.out.Write(copied)
		return transfer.LocalError("write", transfer.Output, err)
	}
	if err := durable.WriteFile(path, copied); err != nil {
		return err
	}
	v := backupView{File: path, Bytes: int64(len(copied)), Cluster: state.Cluster().ID.String(), Index: state.Applied(),
		Nodes: len(state.Nodes()), Groups: len(state.Groups()), Volumes: len(state.VolumesByName())}
	return a.show(v, func(w io.Writer, _ bool) {
		fmt.Fprintf(w, "%s holds the catalog as of index %d: %d nodes, %d groups, %d volumes (%s)\n", v.File, v.Index, v.Nodes, v.Groups,
			v.Volumes, formatSize(v.Bytes))
	})
}

// readCatalog reads a copy from a file, or from standard input.
func (a *app) readCatalog(path string) (*catalog.State, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, transfer.LocalError("open", path, err)
		}
		defer f.Close()
		in = f
	}
	state, err := catalog.Restore(in)
	if err != nil {
		return nil, storage.E("read copy of the catalog", storage.KindOf(err), path, err)
	}
	return state, nil
}

// backupView says what was copied, for programs.
type backupView struct {
	File    string `json:"file"`
	Bytes   int64  `json:"size_bytes"`
	Cluster string `json:"cluster"`
	Index   uint64 `json:"index"`
	Nodes   int    `json:"nodes"`
	Groups  int    `json:"groups"`
	Volumes int    `json:"volumes"`
}

// catalogView is a copy of the catalog, for programs.
type catalogView struct {
	Cluster string              `json:"cluster"`
	Version int                 `json:"version"`
	Index   uint64              `json:"index"`
	Nodes   []catalogNodeView   `json:"nodes"`
	Groups  []catalogGroupView  `json:"groups"`
	Volumes []catalogVolumeView `json:"volumes"`
}

type catalogNodeView struct {
	ID      uint32     `json:"id"`
	Name    string     `json:"name"`
	Zone    string     `json:"zone"`
	State   string     `json:"state"`
	Peer    string     `json:"peer"`
	Stores  []string   `json:"stores"`
	AddedAt *time.Time `json:"added_at,omitempty"`
}

type catalogGroupView struct {
	ID       uint32               `json:"id"`
	Replicas []catalogReplicaView `json:"replicas"`
}

type catalogReplicaView struct {
	Node        uint32 `json:"node"`
	Role        string `json:"role"`
	Store       string `json:"store"`
	Incarnation uint32 `json:"incarnation"`
}

type catalogVolumeView struct {
	ID        uint64     `json:"id"`
	Name      string     `json:"name"`
	SizeBytes int64      `json:"size_bytes"`
	State     string     `json:"state"`
	Groups    []uint32   `json:"groups"`
	Holders   []string   `json:"holders"`
	CreatedAt *time.Time `json:"created_at,omitempty"`
}

func viewCatalog(s *catalog.State) catalogView {
	return catalogView{Cluster: s.Cluster().ID.String(), Version: s.InForce(), Index: s.Applied(),
		Nodes: views(s.Nodes(), func(n storage.Node) catalogNodeView {
			return catalogNodeView{ID: uint32(n.ID), Name: n.Name, Zone: n.Zone, State: string(n.State), Peer: n.Addrs.Peer, AddedAt: viewTime(n.AddedAt),
				Stores: views(n.Stores, func(st storage.Store) string { return st.ID.String() })}
		}),
		Groups: views(s.Groups(), func(g storage.Group) catalogGroupView {
			return catalogGroupView{ID: uint32(g.ID), Replicas: views(g.Replicas, func(r storage.Replica) catalogReplicaView {
				return catalogReplicaView{Node: uint32(r.Node), Role: string(r.Role), Store: r.Key.Store.String(), Incarnation: uint32(r.Key.Incarnation)}
			})}
		}),
		Volumes: views(s.Volumes(), func(v storage.Volume) catalogVolumeView {
			return catalogVolumeView{ID: uint64(v.ID), Name: v.Name, SizeBytes: v.SizeBytes, State: string(v.State), CreatedAt: viewTime(v.CreatedAt),
				Groups:  views(v.Groups, func(g storage.GroupID) uint32 { return uint32(g) }),
				Holders: views(s.AttachmentsOf(v.ID), func(x storage.Attachment) string { return x.Holder.ID })}
		})}
}

func writeCatalog(w io.Writer, s *catalog.State) {
	fmt.Fprintf(w, "Cluster:  %s\nVersion:  %d\nIndex:    %d\n\n", s.Cluster().ID, s.InForce(), s.Applied())
	names := map[storage.NodeID]string{}
	nodes := newTable("NODE", "NAME", "ZONE", "STATE", "PEER", "STORES")
	for _, n := range s.Nodes() {
		names[n.ID] = n.Name
		nodes.row(n.ID.String(), n.Name, orDash(n.Zone), string(n.State), orDash(n.Addrs.Peer),
			strings.Join(views(n.Stores, func(st storage.Store) string { return st.ID.String() }), ", "))
	}
	nodes.write(w, "no nodes")
	fmt.Fprintln(w)
	groups := newTable("GROUP", "REPLICAS")
	for _, g := range s.Groups() {
		groups.row(g.ID.String(), strings.Join(views(g.Replicas, func(r storage.Replica) string {
			if r.Role == storage.RoleVoter {
				return nodeLabel(r.Node, names[r.Node])
			}
			return fmt.Sprintf("%s (%s)", nodeLabel(r.Node, names[r.Node]), r.Role)
		}), ", "))
	}
	groups.write(w, "no groups")
	fmt.Fprintln(w)
	volumes := newTable("VOLUME", "NAME", "SIZE", "STATE", "GROUPS", "HOLDERS")
	for _, v := range s.Volumes() {
		volumes.row(v.ID.String(), v.Name, formatSize(v.SizeBytes), string(v.State),
			strings.Join(views(v.Groups, storage.GroupID.String), ","),
			orDash(strings.Join(views(s.AttachmentsOf(v.ID), func(x storage.Attachment) string { return x.Holder.ID }), ", ")))
	}
	volumes.write(w, "no volumes")
}
