package main

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// Every field is filled by its type, so that one which a newer library adds is not forgotten; some stay empty.
func (g *generator) fill(body any) {
	g.fillValue(reflect.ValueOf(body).Elem())
}

func (g *generator) fillValue(value reflect.Value) {
	if g.fillSpecial(value) {
		return
	}
	switch value.Kind() {
	case reflect.Struct:
		for index := range value.NumField() {
			g.fillValue(value.Field(index))
		}
	case reflect.Pointer:
		value.Set(reflect.New(value.Type().Elem()))
		g.fillValue(value.Elem())
	case reflect.Slice:
		count := g.random.Intn(4)
		value.Set(reflect.MakeSlice(value.Type(), count, count))
		for index := range count {
			g.fillValue(value.Index(index))
		}
	case reflect.Map:
		value.Set(reflect.MakeMap(value.Type()))
		for range g.random.Intn(4) {
			key, item := reflect.New(value.Type().Key()).Elem(), reflect.New(value.Type().Elem()).Elem()
			g.fillValue(key)
			g.fillValue(item)
			value.SetMapIndex(key, item)
		}
	default:
		g.fillPlain(value)
	}
}

func (g *generator) fillPlain(value reflect.Value) {
	if g.random.Intn(5) == 0 {
		return
	}
	switch value.Kind() {
	case reflect.String:
		value.SetString(g.word())
	case reflect.Bool:
		value.SetBool(true)
	case reflect.Int, reflect.Int64:
		value.SetInt(g.random.Int63n(1<<50) - 1)
	case reflect.Uint8:
		value.SetUint(uint64(g.random.Intn(101)))
	case reflect.Uint, reflect.Uint64:
		value.SetUint(uint64(g.random.Intn(1 << 20)))
	default:
		panic(fmt.Sprintf("no value for a %s: say one here", value.Type()))
	}
}

// Values that are not free. True when that settles it.
func (g *generator) fillSpecial(value reflect.Value) bool {
	switch field := value.Addr().Interface().(type) {
	case *jwt.GenericFields:
		field.Tags.Add(g.list()...)
	case *jwt.ExportType:
		*field = []jwt.ExportType{jwt.Stream, jwt.Service}[g.random.Intn(2)]
	case *jwt.ResponseType:
		*field = []jwt.ResponseType{"", jwt.ResponseTypeSingleton, jwt.ResponseTypeStream, jwt.ResponseTypeChunked}[g.random.Intn(4)]
	case *jwt.ClusterTraffic:
		*field = []jwt.ClusterTraffic{"", jwt.ClusterTrafficSystem, jwt.ClusterTrafficOwner}[g.random.Intn(3)]
	case *jwt.SamplingRate:
		*field = jwt.SamplingRate(g.random.Intn(101))
	case *jwt.SigningKeys:
		*field = g.signingKeys()
	case *jwt.TagList:
		field.Add(g.list()...)
	default:
		return false
	}
	return true
}

func (g *generator) signingKeys() jwt.SigningKeys {
	keys := jwt.SigningKeys{}
	for range g.random.Intn(4) {
		if g.random.Intn(3) == 0 {
			keys.Add(g.public(nkeys.PrefixByteAccount))
			continue
		}
		scope := jwt.NewUserScope()
		g.fill(&scope.Template)
		scope.Key, scope.Role, scope.Description = g.public(nkeys.PrefixByteAccount), g.word(), g.word()
		keys.AddScopedSigner(scope)
	}
	return keys
}

func (g *generator) list() []string {
	list := make([]string, g.random.Intn(4))
	for index := range list {
		list[index] = g.word()
	}
	return list
}

var words = []string{"a", "b.c", "up.*", "live.>", "$1.x", "{{tag(site)}}.>", "<&>", "Zürich", "a b", "site:Oslo", "\u2028", "10.0.0.0/8", "\"quoted\""}

func (g *generator) word() string {
	picked := make([]string, 1+g.random.Intn(2))
	for index := range picked {
		picked[index] = words[g.random.Intn(len(words))]
	}
	return strings.Join(picked, ".")
}
