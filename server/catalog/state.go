package catalog

import (
	"cmp"
	"maps"
	"slices"

	storage "github.com/storaged/storaged"
)

// State is the whole catalog. The zero value is not usable; use New or Restore.
//
// It is not safe for concurrent use. Objects are replaced, never changed in place.
type State struct {
	applied uint64 // index of the last command applied, refused ones included
	cluster Cluster

	nodes       map[storage.NodeID]*storage.Node
	groups      map[storage.GroupID]*storage.Group
	volumes     map[storage.VolumeID]*storage.Volume
	sessions    map[storage.SessionID]*Session
	attachments map[storage.AttachmentID]*storage.Attachment

	// events ascend by Seq: len <= MaxEvents, and the last one's Seq <= lastEvent.
	events    []storage.Event
	lastEvent uint64

	// The last ids given out: every id in use is at or below its counter.
	lastNode       storage.NodeID
	lastGroup      storage.GroupID
	lastVolume     storage.VolumeID
	lastSession    storage.SessionID
	lastAttachment storage.AttachmentID

	// Indexes, derived from the maps above and not part of a snapshot.
	nodeByName          map[string]storage.NodeID // without removed nodes
	nodeByStore         map[storage.StoreID]storage.NodeID
	volumeByName        map[string]storage.VolumeID // ready volumes only
	volumeByRequest     map[string]storage.VolumeID
	sessionsByVolume    map[storage.VolumeID][]storage.SessionID    // ascending; slices are replaced, not changed
	attachmentsByVolume map[storage.VolumeID][]storage.AttachmentID // likewise
	unfenced            map[storage.VolumeID]bool                   // whose Fenced is below their Generation
}

// New returns the empty state; the first command it accepts is InitCluster.
func New() *State {
	return &State{
		nodes:               map[storage.NodeID]*storage.Node{},
		groups:              map[storage.GroupID]*storage.Group{},
		volumes:             map[storage.VolumeID]*storage.Volume{},
		sessions:            map[storage.SessionID]*Session{},
		attachments:         map[storage.AttachmentID]*storage.Attachment{},
		nodeByName:          map[string]storage.NodeID{},
		nodeByStore:         map[storage.StoreID]storage.NodeID{},
		volumeByName:        map[string]storage.VolumeID{},
		volumeByRequest:     map[string]storage.VolumeID{},
		sessionsByVolume:    map[storage.VolumeID][]storage.SessionID{},
		attachmentsByVolume: map[storage.VolumeID][]storage.AttachmentID{},
		unfenced:            map[storage.VolumeID]bool{},
	}
}

// Clone returns an independent copy. It copies maps, not objects.
func (s *State) Clone() *State {
	c := *s
	c.nodes, c.groups = maps.Clone(s.nodes), maps.Clone(s.groups)
	c.volumes, c.sessions = maps.Clone(s.volumes), maps.Clone(s.sessions)
	c.nodeByName, c.nodeByStore = maps.Clone(s.nodeByName), maps.Clone(s.nodeByStore)
	c.volumeByName, c.volumeByRequest = maps.Clone(s.volumeByName), maps.Clone(s.volumeByRequest)
	c.sessionsByVolume = maps.Clone(s.sessionsByVolume)
	c.attachments, c.attachmentsByVolume = maps.Clone(s.attachments), maps.Clone(s.attachmentsByVolume)
	c.unfenced = maps.Clone(s.unfenced)
	c.events = slices.Clip(s.events) // what is appended to the one is not seen in the other
	return &c
}

// Applied returns the index of the last command applied.
func (s *State) Applied() uint64 { return s.applied }

// Initialised reports whether InitCluster was applied.
func (s *State) Initialised() bool { return !s.cluster.ID.IsZero() }

// Cluster returns the cluster's settings; zero before InitCluster.
func (s *State) Cluster() Cluster { return s.cluster }

// LastSession returns the last session id given out.
func (s *State) LastSession() storage.SessionID { return s.lastSession }

// NextGroup returns the id that the next AddGroup must name.
func (s *State) NextGroup() storage.GroupID { return s.lastGroup + 1 }

// Node returns a node, also a removed one.
func (s *State) Node(id storage.NodeID) (storage.Node, bool) {
	return get(s.nodes, id, storage.Node.Clone)
}

// Nodes returns all nodes, removed ones included, by ascending id.
func (s *State) Nodes() []storage.Node { return collect(s.nodes, storage.Node.Clone) }

// Group returns a group.
func (s *State) Group(id storage.GroupID) (storage.Group, bool) {
	return get(s.groups, id, storage.Group.Clone)
}

// Groups returns all groups by ascending id.
func (s *State) Groups() []storage.Group { return collect(s.groups, storage.Group.Clone) }

// Volume returns a volume, also one that is being deleted.
func (s *State) Volume(id storage.VolumeID) (storage.Volume, bool) {
	return get(s.volumes, id, storage.Volume.Clone)
}

// VolumeByName returns the ready volume of that name.
func (s *State) VolumeByName(name string) (storage.Volume, bool) {
	return s.Volume(s.volumeByName[name])
}

// Volumes returns all volumes, those being deleted included, by ascending id.
func (s *State) Volumes() []storage.Volume { return collect(s.volumes, storage.Volume.Clone) }

// VolumesByName returns the volumes that have not been deleted, in the order of their names.
func (s *State) VolumesByName() []storage.Volume {
	all := pick(s.volumes, storage.Volume.Clone, func(v *storage.Volume) bool { return v.State != storage.VolumeDeleting })
	slices.SortFunc(all, func(a, b storage.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Session returns a session.
func (s *State) Session(id storage.SessionID) (Session, bool) {
	return get(s.sessions, id, asIs[Session])
}

// Sessions returns all sessions by ascending id.
func (s *State) Sessions() []Session { return collect(s.sessions, asIs[Session]) }

// SessionsOf returns the sessions of a volume by ascending id.
func (s *State) SessionsOf(id storage.VolumeID) []Session {
	return s.pickSessions(id, func(*Session) bool { return true })
}

// pickSessions returns the sessions of a volume that keep selects, by ascending id.
func (s *State) pickSessions(id storage.VolumeID, keep func(*Session) bool) []Session {
	return gather(s.sessions, s.sessionsByVolume[id], keep)
}

// Attachment returns an attachment.
func (s *State) Attachment(id storage.AttachmentID) (storage.Attachment, bool) {
	return get(s.attachments, id, asIs[storage.Attachment])
}

// Attachments returns all attachments by ascending id.
func (s *State) Attachments() []storage.Attachment {
	return collect(s.attachments, asIs[storage.Attachment])
}

// AttachmentsBy returns the attachments that a node holds for plain NBD clients, by ascending id.
func (s *State) AttachmentsBy(node storage.NodeID) []storage.Attachment {
	return pick(s.attachments, asIs[storage.Attachment], func(a *storage.Attachment) bool { return a.Holder.Node == node && node != 0 })
}

// AttachmentsOf returns the attachments of a volume by ascending id.
func (s *State) AttachmentsOf(id storage.VolumeID) []storage.Attachment {
	return gather(s.attachments, s.attachmentsByVolume[id], func(*storage.Attachment) bool { return true })
}

// Unfenced returns the volumes whose generation is not refused to older ones in every group yet, by ascending id.
func (s *State) Unfenced() []storage.Volume {
	out := make([]storage.Volume, 0, len(s.unfenced))
	for _, id := range slices.Sorted(maps.Keys(s.unfenced)) {
		out = append(out, s.volumes[id].Clone())
	}
	return out
}

// DeletingVolumes returns the volumes that are being deleted, by ascending id.
func (s *State) DeletingVolumes() []storage.Volume {
	return pick(s.volumes, storage.Volume.Clone, func(v *storage.Volume) bool { return v.State == storage.VolumeDeleting })
}

// asIs copies an object that refers to no other.
func asIs[V any](v V) V { return v }

// get returns a copy of a map's object.
func get[K comparable, V any](m map[K]*V, k K, clone func(V) V) (v V, ok bool) {
	p, ok := m[k]
	if ok {
		v = clone(*p)
	}
	return v, ok
}

// collect returns copies of a map's objects by ascending key.
func collect[K cmp.Ordered, V any](m map[K]*V, clone func(V) V) []V {
	return pick(m, clone, func(*V) bool { return true })
}

// pick returns copies of the objects that keep selects, by ascending key.
func pick[K cmp.Ordered, V any](m map[K]*V, clone func(V) V, keep func(*V) bool) []V {
	keys := keysOf(m, keep)
	out := make([]V, len(keys))
	for i, k := range keys {
		out[i] = clone(*m[k])
	}
	return out
}

// keysOf returns the keys of the objects that keep selects, ascending.
func keysOf[K cmp.Ordered, V any](m map[K]*V, keep func(*V) bool) (keys []K) {
	for k, v := range m {
		if keep(v) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// gather returns the objects of a list of ids that keep selects.
func gather[K comparable, V any](m map[K]*V, ids []K, keep func(*V) bool) []V {
	out := make([]V, 0, len(ids))
	for _, id := range ids {
		if v, ok := m[id]; ok && keep(v) {
			out = append(out, *v)
		}
	}
	return out
}

// The put and drop functions are the only ones that write the maps: they keep the indexes in step.

// changeVolume puts a volume that the command being applied has changed.
func (s *State) changeVolume(v storage.Volume) storage.Volume {
	v.Revision = s.applied
	s.putVolume(v)
	return v.Clone()
}

func (s *State) putNode(n storage.Node) {
	if old, ok := s.nodes[n.ID]; ok {
		if s.nodeByName[old.Name] == n.ID {
			delete(s.nodeByName, old.Name)
		}
		for _, st := range old.Stores {
			delete(s.nodeByStore, st.ID)
		}
	}
	s.nodes[n.ID] = &n
	if n.State != storage.NodeRemoved {
		s.nodeByName[n.Name] = n.ID
	}
	for _, st := range n.Stores {
		s.nodeByStore[st.ID] = n.ID
	}
}

func (s *State) putGroup(g storage.Group) { s.groups[g.ID] = &g }

func (s *State) dropGroup(id storage.GroupID) { delete(s.groups, id) }

func (s *State) putVolume(v storage.Volume) {
	if old, ok := s.volumes[v.ID]; ok {
		s.unindexVolume(old)
	}
	s.volumes[v.ID] = &v
	if v.State == storage.VolumeReady {
		s.volumeByName[v.Name] = v.ID
	}
	if v.RequestID != "" {
		s.volumeByRequest[v.RequestID] = v.ID
	}
	if v.Fenced < v.Generation && v.State == storage.VolumeReady {
		s.unfenced[v.ID] = true
	}
}

func (s *State) dropVolume(id storage.VolumeID) {
	if old, ok := s.volumes[id]; ok {
		s.unindexVolume(old)
		delete(s.volumes, id)
	}
}

func (s *State) unindexVolume(v *storage.Volume) {
	delete(s.unfenced, v.ID)
	if s.volumeByName[v.Name] == v.ID {
		delete(s.volumeByName, v.Name)
	}
	if s.volumeByRequest[v.RequestID] == v.ID {
		delete(s.volumeByRequest, v.RequestID)
	}
}

func (s *State) putSession(x Session) {
	if _, ok := s.sessions[x.ID]; !ok {
		list(s.sessionsByVolume, x.Volume, x.ID)
	}
	s.sessions[x.ID] = &x
}

func (s *State) putAttachment(a storage.Attachment) {
	if _, ok := s.attachments[a.ID]; !ok {
		list(s.attachmentsByVolume, a.Volume, a.ID)
	}
	s.attachments[a.ID] = &a
}

func (s *State) dropAttachment(id storage.AttachmentID) {
	if a, ok := s.attachments[id]; ok {
		delete(s.attachments, id)
		unlist(s.attachmentsByVolume, a.Volume, id)
	}
}

// list enters an id in the list of its volume, and unlist takes it out. Lists are replaced, never changed: clones share
// them.
func list[ID cmp.Ordered](lists map[storage.VolumeID][]ID, of storage.VolumeID, id ID) {
	ids := lists[of]
	at, _ := slices.BinarySearch(ids, id)
	lists[of] = slices.Insert(slices.Clone(ids), at, id)
}

func unlist[ID cmp.Ordered](lists map[storage.VolumeID][]ID, of storage.VolumeID, id ID) {
	ids := lists[of]
	if len(ids) == 1 {
		delete(lists, of)
		return
	}
	at, _ := slices.BinarySearch(ids, id)
	lists[of] = slices.Delete(slices.Clone(ids), at, at+1)
}

func (s *State) dropSession(id storage.SessionID) {
	x, ok := s.sessions[id]
	if !ok {
		return
	}
	delete(s.sessions, id)
	unlist(s.sessionsByVolume, x.Volume, id)
}
