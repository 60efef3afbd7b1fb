# As much of nixpkgs' `lib` as the modules here use, written anew for tests: options with types, and modules that are merged.
# Strict where nixpkgs is: a value of another type, an option that does not exist, and two values that differ are errors.
let
  inherit (builtins)
    all
    any
    attrNames
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    functionArgs
    head
    intersectAttrs
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isPath
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    stringLength
    substring
    tail
    throw
    toJSON
    typeOf
    ;

  filterAttrs =
    keep: set:
    listToAttrs (
      concatMap (
        name:
        if keep name set.${name} then
          [
            {
              inherit name;
              value = set.${name};
            }
          ]
        else
          [ ]
      ) (attrNames set)
    );
  genAttrs =
    names: f:
    listToAttrs (
      map (name: {
        inherit name;
        value = f name;
      }) names
    );
  names = sets: attrNames (foldl' (all: set: all // set) { } sets);
  show = path: "`${concatStringsSep "." path}'";
  isType = type: value: isAttrs value && (value._type or "") == type;
  isDerivation = value: isAttrs value && (value.type or "") == "derivation";

  # Definitions with conditions and priorities.
  mkIf = condition: content: {
    _type = "if";
    inherit condition content;
  };
  mkMerge = contents: {
    _type = "merge";
    inherit contents;
  };
  mkOverride = priority: content: {
    _type = "override";
    inherit priority content;
  };
  defaultPriority = 100;

  # Conditions and priorities of a set, put on each of its attributes: which attributes there are must be known before any
  # condition is, since a condition may depend on one of them.
  pushedDown =
    value:
    if isType "merge" value then
      concatMap pushedDown value.contents
    else if isType "if" value then
      map (mapAttrs (_: mkIf value.condition)) (pushedDown value.content)
    else if isType "override" value then
      map (mapAttrs (_: mkOverride value.priority)) (pushedDown value.content)
    else if isAttrs value then
      [ value ]
    else
      throw "a ${typeOf value} where a set is needed";

  # The values of one option with their priorities, those whose condition does not hold left out.
  discharged =
    priority: value:
    if isType "merge" value then
      concatMap (discharged priority) value.contents
    else if isType "if" value then
      if value.condition then discharged priority value.content else [ ]
    else if isType "override" value then
      # What it has is not looked at: a default that is not used may be an error.
      [
        {
          inherit (value) priority;
          value = value.content;
        }
      ]
    else
      [ { inherit priority value; } ];

  strongest =
    values:
    let
      least = foldl' (least: value: if value.priority < least then value.priority else least) 10000 values;
    in
    map (value: value.value) (filter (value: value.priority == least) values);

  # The value that definitions have together.
  merged =
    path: type: definitions:
    let
      values = strongest (concatMap (discharged defaultPriority) definitions);
      wrong = filter (value: !type.check value) values;
    in
    if values == [ ] then
      throw "the option ${show path} is used but has no value"
    else if wrong != [ ] then
      throw "the option ${show path} is not of type `${type.name}': ${describe (head wrong)}"
    else
      type.merge path values;
  describe = value: if isAttrs value || isFunction value || isList value then "a ${typeOf value}" else toJSON value;

  attrsMerged =
    path: type: sets:
    let
      pushed = concatMap pushedDown sets;
      definitions = name: map (set: set.${name}) (filter (set: set ? ${name}) pushed);
      # An attribute that has definitions whose conditions do not hold is not there.
      isThere = name: any (definition: discharged defaultPriority definition != [ ]) (definitions name);
    in
    genAttrs (filter isThere (names pushed)) (name: merged (path ++ [ name ]) type (definitions name));

  one =
    path: values:
    if length values == 1 || all (value: value == head values) values then
      head values
    else
      throw "the option ${show path} has values that differ: ${toJSON values}";

  mkType = name: check: {
    inherit name check;
    merge = one;
  };
  isStringLike = value: isString value || isPath value || isDerivation value;
  between = least: most: mkType "integer from ${toString least} to ${toString most}" (
    value: isInt value && value >= least && value <= most
  );

  types = {
    bool = mkType "boolean" isBool;
    int = mkType "integer" isInt;
    float = mkType "float" builtins.isFloat;
    str = mkType "string" isString;
    nonEmptyStr = mkType "non-empty string" (value: isString value && match "[ \t\n]*" value == null);
    strMatching = pattern: mkType "string matching ${pattern}" (
      value: isString value && match pattern value != null
    );
    path = mkType "absolute path" (
      value: isStringLike value && substring 0 1 (toString value) == "/"
    );
    package = mkType "package" isDerivation;
    raw = mkType "anything" (_: true);
    lines = mkType "lines" isString // {
      merge = _: concatStringsSep "\n";
    };
    ints = {
      inherit between;
      unsigned = mkType "unsigned integer" (value: isInt value && value >= 0);
      positive = mkType "positive integer" (value: isInt value && value > 0);
    };
    enum = values: mkType "one of ${toJSON values}" (value: elem value values);
    nullOr = type: {
      name = "null or ${type.name}";
      check = value: value == null || type.check value;
      merge =
        path: values: if all (value: value == null) values then null else type.merge path values;
    };
    either = first: second: {
      name = "${first.name} or ${second.name}";
      check = value: first.check value || second.check value;
      merge = path: values: (if all first.check values then first else second).merge path values;
    };
    oneOf = options: foldl' types.either (head options) (tail options);
    listOf = type: {
      name = "list of ${type.name}";
      check = isList;
      merge = path: values: map (value: merged path type [ value ]) (concatLists values);
    };
    attrsOf = type: {
      name = "set of ${type.name}";
      check = isAttrs;
      merge = path: attrsMerged path type;
    };
    attrs = mkType "set" isAttrs;
    submodule =
      module:
      {
        name = "submodule";
        check = value: isAttrs value || isFunction value;
        merge =
          path: values:
          (evalModules {
            inherit path;
            modules = [ module ] ++ map (value: { config = value; }) values;
            specialArgs.name = elemAt path (length path - 1);
          }).config;
      };
    # What systemd's sections take: lists add up, all else is one value.
    unitOption = mkType "systemd option" (_: true) // {
      merge = path: values: if all isList values then concatLists values else one path values;
    };
  };

  # Options of several modules, which may not declare one twice.
  declared =
    path: trees:
    genAttrs (names trees) (
      name:
      let
        found = map (tree: tree.${name}) (filter (tree: tree ? ${name}) trees);
        at = path ++ [ name ];
      in
      if !any (isType "option") found then
        declared at found
      else if length found == 1 then
        head found
      else
        throw "the option ${show at} is declared twice"
    );

  # What options have by their definitions and defaults; `freeform` is the type of what is not declared.
  evaluated =
    path: freeform: options: definitions:
    let
      pushed = concatMap pushedDown definitions;
      of = name: map (set: set.${name}) (filter (set: set ? ${name}) pushed);
      free = filter (name: !(options ? ${name})) (names pushed);
      value =
        name:
        let
          at = path ++ [ name ];
          option = options.${name};
          given = of name ++ (if option ? default then [ (mkOverride 1500 option.default) ] else [ ]);
        in
        if isType "option" option then
          (option.apply or (value: value)) (merged at (option.type or types.raw) given)
        else
          evaluated at null option (of name);
    in
    genAttrs (attrNames options) value
    // (
      if free == [ ] then
        { }
      else if freeform != null then
        freeform.merge path (map (intersectAttrs (genAttrs free (_: null))) pushed)
      else
        throw "the option ${show (path ++ [ (head free) ])} does not exist"
    );

  evalModules =
    {
      modules,
      specialArgs ? { },
      path ? [ ],
    }:
    let
      args = specialArgs // {
        inherit config lib options;
      };
      applied =
        module:
        if isPath module || isString module then
          applied (import module)
        else if isFunction module then
          module (intersectAttrs (functionArgs module) args)
        else
          module;
      normal =
        given:
        let
          module = applied given;
          further = removeAttrs module [
            "_file"
            "config"
            "freeformType"
            "imports"
            "key"
            "options"
          ];
          isWhole = module ? config || module ? options;
        in
        if isWhole && further != { } then
          throw "a module with `config' or `options' has `${head (attrNames further)}' beside it"
        else
          concatMap normal (module.imports or [ ])
          ++ [
            {
              options = module.options or { };
              config = if isWhole then module.config or { } else further;
              freeform = module.freeformType or null;
            }
          ];
      all' = concatMap normal modules;
      options = declared path (map (module: module.options) all');
      freeforms = filter (type: type != null) (map (module: module.freeform) all');
      freeform = if freeforms == [ ] then null else head freeforms;
      config = evaluated path freeform options (map (module: module.config) all');
    in
    {
      inherit config options;
    };

  lib = {
    inherit
      concatStringsSep
      evalModules
      filterAttrs
      genAttrs
      mapAttrs
      mkIf
      mkMerge
      mkOverride
      types
      ;
    concatStrings = concatStringsSep "";
    getBin = package: package;
    # In lists of packages that are linked together; the stubs have no such links.
    hiPrio = package: package;
    # lib/kernel.nix
    kernel = {
      no.tristate = "n";
      option = answer: answer // { optional = true; };
    };
    getExe = package: "${package}/bin/${package.meta.mainProgram or package.pname}";
    getVersion = package: package.version;
    literalExpression = text: {
      _type = "literalExpression";
      inherit text;
    };
    makeBinPath = packages: concatStringsSep ":" (map (package: "${package}/bin") packages);
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mkDefault = mkOverride 1000;
    mkForce = mkOverride 50;
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkOption = option: option // { _type = "option"; };
    nameValuePair = name: value: { inherit name value; };
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: values: if condition then values else [ ];
    optionalString = condition: text: if condition then text else "";
    removePrefix =
      prefix: text:
      if substring 0 (stringLength prefix) text == prefix then
        substring (stringLength prefix) (-1) text
      else
        text;
    removeSuffix =
      suffix: text:
      let
        rest = stringLength text - stringLength suffix;
      in
      if rest >= 0 && substring rest (-1) text == suffix then substring 0 rest text else text;
  };
in
lib
