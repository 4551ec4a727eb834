package dockerplugin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
	"github.com/storaged/storaged/api/csi"
)

// Cluster is what the plugin asks of a storaged cluster: a part of api.Cluster, which says what the methods promise.
// api/client implements it.
type Cluster interface {
	CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error)
	Volume(ctx context.Context, name string) (api.Volume, error)
	// Volumes: a limit of 0 means all.
	Volumes(ctx context.Context, after string, limit int) ([]api.Volume, error)
	DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error
}

// Config says what a Plugin works with. All fields but DefaultSizeBytes and Log are required.
type Config struct {
	Cluster Cluster
	// Devices is the host's gateway.
	Devices csi.Devices
	Mounts  csi.Mounts
	// StateDir is a directory of the plugin's own; an absolute path.
	StateDir string
	// Boot is another string each time the host's kernel has started.
	Boot string
	// DefaultSizeBytes is the size of a new volume without the option; 0: the option is required.
	DefaultSizeBytes int64
	// Log gets a line a thing that an operator may want to know of; nil discards.
	Log *slog.Logger
}

// Plugin carries out what Docker asks for. It is made by Open.
type Plugin struct {
	config  Config
	log     *slog.Logger
	records records
	locks   locks // by the volume's name
}

// Open returns the plugin over its state directory, which it makes if it is not there.
func Open(config Config) (*Plugin, error) {
	if !filepath.IsAbs(config.StateDir) || config.Boot == "" {
		return nil, storage.E("open", storage.KindInvalid, "Docker plugin", fmt.Errorf("state directory %q is no absolute path, or the boot %q is empty",
			config.StateDir, config.Boot))
	}
	p := &Plugin{config: config, log: config.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	var err error
	p.records, err = openRecords(filepath.Join(config.StateDir, "volumes"), config.Boot)
	return p, err
}

// mountpoint is where a volume is mounted.
func (p *Plugin) mountpoint(volume string) string {
	return filepath.Join(p.config.StateDir, "mounts", volume)
}

// begin is what every call about a volume begins with: the name is checked, the volume locked, its record read.
func (p *Plugin) begin(ctx context.Context, volume string) (rec record, ok bool, unlock func(), err error) {
	if err := storage.CheckVolumeName(volume); err != nil {
		return rec, false, nil, err
	}
	if unlock, err = p.locks.lock(ctx, volume); err != nil {
		return rec, false, nil, err
	}
	if rec, ok, err = p.records.load(volume); err != nil {
		unlock()
		return rec, false, nil, err
	}
	return rec, ok, unlock, nil
}

// Volume is a volume as this host knows it.
type Volume struct {
	api.Volume
	// Mountpoint is where it is mounted; empty: nowhere on this host.
	Mountpoint string
	// Stale: the cluster did not answer, and only Name, ID and Mountpoint are known.
	Stale bool
}

// Create makes the volume, or takes in the one that is there: then a size that was said must be the volume's. The options
// hold for this host; they are replaced while nobody here uses the volume. KindConflict otherwise. It may be repeated.
func (p *Plugin) Create(ctx context.Context, volume string, given map[string]string) error {
	rec, known, unlock, err := p.begin(ctx, volume)
	if err != nil {
		return err
	}
	defer unlock()
	o, sizeBytes, err := parseOptions(volume, given)
	if err != nil {
		return err
	}
	if known && (rec.Held || len(rec.Users) > 0) {
		if err := unchanged(rec, o); err != nil {
			return err
		}
	}
	if known && rec.ID == 0 && (sizeBytes == 0 || sizeBytes == rec.SizeBytes) { // a Create that was not finished
		rec.Options = o
		return p.make(ctx, rec)
	}
	v, err := p.config.Cluster.Volume(ctx, volume)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		if sizeBytes == 0 {
			sizeBytes = p.config.DefaultSizeBytes
		}
		if sizeBytes == 0 {
			return storage.E("create", storage.KindInvalid, "volume "+volume, errors.New("there is none of that name; to make it, say how large: -o size=10G"))
		}
		if err := csi.CheckFSSize(o.FSType, sizeBytes); err != nil {
			return err
		}
		return p.make(ctx, record{Volume: volume, SizeBytes: sizeBytes, RequestID: "docker-" + rand.Text(), Options: o})
	case err != nil:
		return err
	}
	if sizeBytes != 0 && sizeBytes != v.SizeBytes {
		return storage.E("create", storage.KindConflict, "volume "+volume, fmt.Errorf("it is there already, with %d bytes; leave the size out to use "+
			"it, and grow it with `storagectl volume resize`", v.SizeBytes))
	}
	if !known || rec.ID != v.ID {
		rec = record{Volume: volume}
	}
	rec.Options = o
	return p.adopt(rec, v)
}

// unchanged refuses other options than those that a volume is in use with.
func unchanged(rec record, o options) error {
	if rec.Options == o {
		return nil
	}
	return storage.E("create", storage.KindConflict, "volume "+rec.Volume, fmt.Errorf("it is in use here (by %d containers) with other options; "+
		"stop them first", len(rec.Users)))
}

// make makes the volume that the record describes, under the request id that is in it.
func (p *Plugin) make(ctx context.Context, rec record) error {
	if err := p.records.save(rec); err != nil {
		return err
	}
	v, err := p.config.Cluster.CreateVolume(ctx, api.NewVolume{RequestID: rec.RequestID, Name: rec.Volume, SizeBytes: rec.SizeBytes})
	switch {
	case err == nil:
		rec.Made = true
	case errors.Is(err, storage.ErrExists): // another host was faster
		if v, err = p.config.Cluster.Volume(ctx, rec.Volume); err != nil {
			return err
		}
	default:
		return err
	}
	return p.adopt(rec, v)
}

// adopt writes down that the volume is known here.
func (p *Plugin) adopt(rec record, v api.Volume) error {
	if v.State == api.VolumeDeleting {
		return storage.E("create", storage.KindConflict, "volume "+rec.Volume, errors.New("one of that name is being deleted; try again"))
	}
	rec.ID = v.ID
	return p.records.save(rec)
}

// Remove deletes the volume with its data if this host made it, and forgets it otherwise. KindConflict while it is in use,
// here or elsewhere. One that is not known here is no error.
func (p *Plugin) Remove(ctx context.Context, volume string) error {
	rec, known, unlock, err := p.begin(ctx, volume)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case !known:
		return nil
	case len(rec.Users) > 0:
		return storage.E("remove", storage.KindConflict, "volume "+volume, fmt.Errorf("it is in use here by %d containers", len(rec.Users)))
	case rec.Held:
		if err := p.release(ctx, &rec); err != nil {
			return err
		}
	}
	if rec.ID == 0 { // was it made? Then under this request.
		v, err := p.config.Cluster.CreateVolume(ctx, api.NewVolume{RequestID: rec.RequestID, Name: volume, SizeBytes: rec.SizeBytes})
		switch {
		case err == nil:
			rec.ID, rec.Made = v.ID, true
		case !errors.Is(err, storage.ErrExists):
			return err
		}
	}
	if rec.Made {
		if err := p.config.Cluster.DeleteVolume(ctx, volume, rec.ID); err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	return p.records.drop(volume)
}

// Get returns a volume that is known here. KindNotFound for others, also for those of the cluster: Docker then calls
// Create, with the options that hold for this host. Without the cluster's answer the volume is Stale.
func (p *Plugin) Get(ctx context.Context, volume string) (Volume, error) {
	rec, known, unlock, err := p.begin(ctx, volume)
	if err != nil {
		return Volume{}, err
	}
	unlock()
	none := storage.E("look up", storage.KindNotFound, "volume "+volume, errors.New("it is not known on this host; `docker volume create -d` "+
		"makes it, or takes it in"))
	if !known || rec.ID == 0 {
		return Volume{}, none
	}
	v, err := p.config.Cluster.Volume(ctx, volume)
	switch {
	case errors.Is(err, storage.ErrUnavailable):
		return p.stale(rec), nil
	case errors.Is(err, storage.ErrNotFound), err == nil && v.ID != rec.ID:
		return Volume{}, none
	case err != nil:
		return Volume{}, err
	}
	return Volume{Volume: v, Mountpoint: p.shown(rec)}, nil
}

// List returns the volumes that Get would return, by name.
func (p *Plugin) List(ctx context.Context) ([]Volume, error) {
	names, err := p.records.names()
	if err != nil {
		return nil, err
	}
	there := map[string]api.Volume{}
	volumes, clusterErr := p.config.Cluster.Volumes(ctx, "", 0)
	if clusterErr != nil && !errors.Is(clusterErr, storage.ErrUnavailable) {
		return nil, clusterErr
	}
	for _, v := range volumes {
		there[v.Name] = v
	}
	var list []Volume
	for _, name := range names {
		rec, known, err := p.records.load(name) // as it was saved last, and not while it changes: files are replaced as a whole
		switch {
		case err != nil:
			return nil, err
		case !known || rec.ID == 0:
		case clusterErr != nil:
			list = append(list, p.stale(rec))
		case there[name].ID == rec.ID:
			list = append(list, Volume{Volume: there[name], Mountpoint: p.shown(rec)})
		}
	}
	return list, nil
}

// Path returns where the volume is mounted on this host; empty: nowhere.
func (p *Plugin) Path(ctx context.Context, volume string) (string, error) {
	rec, _, unlock, err := p.begin(ctx, volume)
	if err != nil {
		return "", err
	}
	unlock()
	return p.shown(rec), nil
}

func (p *Plugin) stale(rec record) Volume {
	return Volume{Volume: api.Volume{Name: rec.Volume, ID: rec.ID}, Mountpoint: p.shown(rec), Stale: true}
}

// shown is the mountpoint of a volume that has users.
func (p *Plugin) shown(rec record) string {
	if len(rec.Users) == 0 {
		return ""
	}
	return p.mountpoint(rec.Volume)
}
