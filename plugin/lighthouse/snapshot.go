package lighthouse

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// A snapshot is a file with the last-known objects, for a start without an API server. It holds them as they are kept, so
// that what is served from it is built by the same code, and is written whole: into a file beside it, then renamed.
//
// The first line tells the format, then follow a checksum of the rest and the objects. A file that is not whole is refused.

const (
	snapshotFormat = "fastnet lighthouse snapshot 1\n"
	// snapshotDelay is how long changes are gathered before they are written: together with the writing, under a second.
	snapshotDelay = 500 * time.Millisecond
)

// snapshot is what the file holds.
type snapshot struct {
	Written    time.Time
	LocalID    string
	Namespaces []string
	Imports    []savedImport
	Slices     []savedSlice
	// Gateways by namespace and name, with the clusters that their cables are up to.
	Gateways map[[2]string][]string
}

type savedImport struct {
	Namespace, Name string
	Headless        bool
	Addresses       []byte
	Ports           []savedPort
	Labels          map[string]string
}

type savedSlice struct {
	Namespace, Name, ServiceKey, ClusterID string
	ClusterAddress, Weighted               bool
	Weight, Share                          uint16
	Ports                                  []savedPort
	Hostnames                              []string // of the backends, in the order of Backends
	Backends, Addresses, Ready             []byte
}

type savedPort struct {
	Name, Protocol string
	Number         uint16
}

// appendSaved appends an address as 16 bytes.
func appendSaved(to []byte, addr netip.Addr) []byte {
	room := addr.As16()
	return append(to, room[:]...)
}

func saveAddresses(list []netip.Addr) []byte {
	var to []byte
	for _, addr := range list {
		to = appendSaved(to, addr)
	}
	return to
}

// restoreAddresses reads addresses back, and leaves out those that may not be answered: a file is input like any other.
func restoreAddresses(from []byte) []netip.Addr {
	var list []netip.Addr
	for ; len(from) >= 16; from = from[16:] {
		if addr := netip.AddrFrom16([16]byte(from)).Unmap(); usable(addr) {
			list = append(list, addr)
		}
	}
	return list
}

func savePorts(ports []port) []savedPort {
	var to []savedPort
	for _, p := range ports {
		to = append(to, savedPort{p.name, p.protocol, p.number})
	}
	return to
}

func restorePorts(from []savedPort) []port {
	var ports []port
	for _, p := range from {
		ports = appendPort(ports, p.Name, p.Protocol, int32(p.Number))
	}
	return ports
}

func (o *importObject) save() savedImport {
	return savedImport{
		Namespace: o.namespace, Name: o.name, Headless: o.headless,
		Addresses: saveAddresses(o.addresses.all()), Ports: savePorts(o.ports), Labels: o.labels,
	}
}

func (i *savedImport) restore() *importObject {
	return &importObject{
		slim: slim{objectKey: objectKey{i.Namespace, i.Name}}, key: i.Name + "." + i.Namespace, headless: i.Headless,
		addresses: newFamilies(restoreAddresses(i.Addresses)), ports: restorePorts(i.Ports), labels: i.Labels,
	}
}

func (s *sliceObject) save() savedSlice {
	to := savedSlice{
		Namespace: s.namespace, Name: s.name, ServiceKey: s.serviceKey, ClusterID: s.clusterID,
		ClusterAddress: s.clusterAddress, Weighted: s.weighted, Weight: s.weight, Share: s.share,
		Ports: savePorts(s.ports), Addresses: saveAddresses(s.addresses), Ready: saveAddresses(s.ready),
	}
	to.Hostnames = make([]string, len(s.backends))
	to.Backends = make([]byte, 0, 16*len(s.backends))
	for i := range s.backends {
		to.Hostnames[i] = s.backends[i].hostname
		to.Backends = appendSaved(to.Backends, s.backends[i].address)
	}
	return to
}

func (i *savedSlice) restore() *sliceObject {
	s := &sliceObject{
		slim: slim{objectKey: objectKey{i.Namespace, i.Name}}, serviceKey: i.ServiceKey, clusterID: i.ClusterID,
		clusterAddress: i.ClusterAddress, weighted: i.Weighted, weight: i.Weight, share: i.Share,
		ports: restorePorts(i.Ports), addresses: restoreAddresses(i.Addresses), ready: restoreAddresses(i.Ready),
	}
	s.backends = make([]backend, 0, len(i.Hostnames))
	for at, hostname := range i.Hostnames {
		if len(i.Backends) < 16*(at+1) {
			break
		}
		addr := netip.AddrFrom16([16]byte(i.Backends[16*at:])).Unmap()
		if usable(addr) && (hostname == "" || isLabel(hostname)) {
			s.addBackend(hostname, addr)
		}
	}
	s.orderBackends()
	return s
}

// save gives what the world holds, ready to be written. It holds up changes for as long as it takes to list the objects; they
// are turned into what is saved later, for they never change.
func (w *world) save() (*snapshot, bool) {
	w.mu.Lock()
	current := w.current.Load()
	if !current.synced {
		w.mu.Unlock()
		return nil, false
	}
	to := &snapshot{Written: time.Now(), LocalID: current.localID, Gateways: map[[2]string][]string{}}
	imports := make([]*importObject, 0, len(w.imports))
	for _, o := range w.imports {
		imports = append(imports, o)
	}
	list := make([]*sliceObject, 0, len(w.sliceOwner))
	for _, o := range w.sliceOwner {
		list = append(list, o)
	}
	for name := range w.namespaces {
		to.Namespaces = append(to.Namespaces, name)
	}
	for key, up := range w.gateways {
		to.Gateways[[2]string{key.namespace, key.name}] = up
	}
	w.mu.Unlock()

	for _, o := range imports {
		to.Imports = append(to.Imports, o.save())
	}
	for _, o := range list {
		to.Slices = append(to.Slices, o.save())
	}
	return to, true
}

// restore serves what was saved, until the API server has told what there is now. selects settles which stanzas serve an
// import.
func (w *world) restore(from *snapshot, selects func(map[string]string) selection) {
	var list []*sliceObject
	for i := range from.Slices {
		list = append(list, from.Slices[i].restore())
	}
	var namespaces []*namespaceObject
	for _, name := range from.Namespaces {
		namespaces = append(namespaces, &namespaceObject{slim{objectKey: objectKey{"", name}}})
	}
	var imports []*importObject
	for i := range from.Imports {
		o := from.Imports[i].restore()
		o.selected = selects(o.labels)
		imports = append(imports, o)
	}
	var gateways []*gatewayObject
	for key, up := range from.Gateways {
		gateways = append(gateways, &gatewayObject{slim: slim{objectKey: objectKey{key[0], key[1]}}, up: up})
	}
	w.replaceSlices(list)
	w.replaceNamespaces(namespaces)
	w.replaceImports(imports)
	w.replaceGateways(gateways)
	w.setLocalID(from.LocalID)
	w.change(func(next *zone) bool {
		w.restored = true
		return w.settle(next)
	})
}

// snapshotFile keeps the snapshot of one source in a file.
type snapshotFile struct {
	path  string
	world *world
	stop  chan struct{}
	done  chan struct{}
	// failing tells that the last attempt to write failed, which is logged once.
	failing bool
}

// snapshotOwners are the sources that have a path now, the last of which writes there. In a reload there are two for a moment;
// where it fails, the first is left and goes on.
var snapshotOwners = struct {
	sync.Mutex
	of map[string][]*snapshotFile
}{of: map[string][]*snapshotFile{}}

// owns tells whether f is to write. The owners are locked.
func (f *snapshotFile) owns() bool {
	all := snapshotOwners.of[f.path]
	return len(all) > 0 && all[len(all)-1] == f
}

// load reads the file into the world, unless there is none. After a reload, what the source before knew is written first.
func (f *snapshotFile) load(selects func(map[string]string) selection) {
	snapshotOwners.Lock()
	defer snapshotOwners.Unlock()
	before := snapshotOwners.of[f.path]
	if len(before) > 0 {
		before[len(before)-1].write()
	}
	snapshotOwners.of[f.path] = append(before, f)
	from, err := readSnapshot(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		log.Infof("snapshot: none in %s yet", f.path)
	case err != nil:
		log.Errorf("snapshot: starting without last-known records: %v", err)
	default:
		f.world.restore(from, selects)
		servedSnapshot.Store(from.Written.UnixNano())
		log.Infof("snapshot: serving the records of %s until the API server answers", from.Written.Format(time.RFC3339))
	}
}

// run writes the file soon after every change, until end is called.
func (f *snapshotFile) run() {
	defer close(f.done)
	for {
		select {
		case <-f.stop:
			return
		case <-f.world.changed:
		}
		select {
		case <-f.stop:
			return
		case <-time.After(snapshotDelay):
		}
		f.save()
	}
}

// end stops the writing, with the last state written.
func (f *snapshotFile) end() {
	close(f.stop)
	<-f.done
	f.save()
	snapshotOwners.Lock()
	defer snapshotOwners.Unlock()
	left := slices.DeleteFunc(snapshotOwners.of[f.path], func(o *snapshotFile) bool { return o == f })
	if len(left) == 0 {
		delete(snapshotOwners.of, f.path)
	} else {
		snapshotOwners.of[f.path] = left
	}
}

// save writes the file, unless another source has it by now.
func (f *snapshotFile) save() {
	snapshotOwners.Lock()
	defer snapshotOwners.Unlock()
	if f.owns() {
		f.write()
	}
}

// write writes the file. The owners are locked.
func (f *snapshotFile) write() {
	from, ok := f.world.save()
	if !ok {
		return
	}
	err := writeSnapshot(f.path, from)
	if err != nil {
		snapshotErrors.Inc()
		if !f.failing {
			log.Errorf("snapshot: last-known records are not kept: %v", err)
		}
	} else if f.failing {
		log.Infof("snapshot: %s can be written again", f.path)
	}
	f.failing = err != nil
}

func writeSnapshot(path string, s *snapshot) (err error) {
	var objects bytes.Buffer
	if err := gob.NewEncoder(&objects).Encode(s); err != nil {
		return err
	}
	sum := sha256.Sum256(objects.Bytes())
	temp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp.Name())
		}
	}()
	for _, part := range [][]byte{[]byte(snapshotFormat), sum[:], objects.Bytes()} {
		if _, err := temp.Write(part); err != nil {
			temp.Close()
			return err
		}
	}
	// Without this, a power cut soon after the rename may leave an empty file where a good one was.
	if err := temp.Sync(); err != nil {
		temp.Close()
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

func readSnapshot(path string) (*snapshot, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rest, found := bytes.CutPrefix(text, []byte(snapshotFormat))
	if !found {
		return nil, fmt.Errorf("%s is no snapshot of this version", path)
	}
	if len(rest) < sha256.Size || sha256.Sum256(rest[sha256.Size:]) != [sha256.Size]byte(rest[:sha256.Size]) {
		return nil, fmt.Errorf("%s is not whole: its checksum is wrong", path)
	}
	s := &snapshot{}
	if err := gob.NewDecoder(bytes.NewReader(rest[sha256.Size:])).Decode(s); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}
